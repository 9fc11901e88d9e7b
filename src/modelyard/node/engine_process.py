"""An engine as a child: started so that it cannot outlive us, ended so that nothing it started is left.

Four things hold on to it. Its process group (it leads its own session) is what signals go to. The kernel kills it when
we die (PR_SET_PDEATHSIG). A *guard*, a sleeping fork of ours inside its group, kills the rest of the group in that
case: its own processes have no such promise from the kernel. And orphans come back to us (PR_SET_CHILD_SUBREAPER), so
that what left the group is found too. No signal ever goes to a number that might have been given away again: the
leader is left unreaped until its group has been killed, and everything else that is signalled is a child of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from typing import NoReturn

from modelyard.engines.contract import LaunchSpec

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 15, 36, 38
_CANNOT_START = 127
# What the guard calls itself: it is in the engine's group and yet none of the engine's processes.
GUARD_NAME = "engine-guard"
# If memory runs out, the kernel shall end the engine, not the gateway.
_OOM_SCORE = "500"

_prctl = ctypes.CDLL(None, use_errno=True).prctl


class EngineProcess:
    """A started engine. `output` is the reading end of the one pipe that carries stdout and stderr.

    `poll` must be called after each SIGCHLD. Meant for a process that has one thread and no other children."""

    def __init__(self, spec: LaunchSpec) -> None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.output, output_writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.output, False)
        # Never written: the guard reads its end when we are gone.
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        exec_done, exec_pending = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        self.started_at = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._lifeline)
            _become(spec, parent, lifeline, output_writer)
        for descriptor in (lifeline, output_writer, exec_pending):
            os.close(descriptor)
        # Ends when the child is the engine, or is gone: from here on its group exists.
        os.read(exec_done, 1)
        os.close(exec_done)
        self.code: int | None = None
        self.signal: int | None = None
        self._leader_gone = False
        self._all_gone = False

    def terminate(self) -> None:
        """SIGTERM to the group; nothing where the leader has ended."""
        if not self._leader_gone:
            os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything; `poll` tells when it is gone."""
        if not self._leader_gone:
            os.killpg(self.pid, signal.SIGKILL)

    def poll(self) -> bool:
        """Whether the engine and everything it started is gone. Once the leader ended, kills what is left."""
        while not self._leader_gone and (ended := _first_zombie()):
            if ended == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
                self._leader_gone = True
            else:
                os.waitpid(ended, 0)
        if self._leader_gone and not self._all_gone:
            self._kill_and_reap_orphans()
        return self._all_gone

    def _kill_and_reap_orphans(self) -> None:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self._note(status)
        except ChildProcessError:
            self._all_gone = True

    def _note(self, status: int) -> None:
        if os.WIFSIGNALED(status):
            self.signal = os.WTERMSIG(status)
        else:
            self.code = os.WEXITSTATUS(status)


def _first_zombie() -> int | None:
    """A child that ended and was not reaped; it stays so."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended.si_pid if ended else None


def _children() -> list[int]:
    """Our children, adopted orphans among them."""
    me, found = os.getpid(), list[int]()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may hold anything, a ")" too.
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent == me:
            found.append(int(name))
    return found


def _become(spec: LaunchSpec, parent: int, lifeline: int, output: int) -> NoReturn:
    """In the child: turn into the engine, or say why not and exit with the shell's 127."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_CANNOT_START)
        signal.set_wakeup_fd(-1)
        _leave_guard(lifeline)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o077)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _restrict()
        os.chdir(spec.cwd)
        os.execvpe(spec.argv[0], spec.argv, spec.environ)  # noqa: S606 (an argv list and no shell is the point)
    except OSError as error:
        os.write(output, f"cannot start {spec.argv[0]}: {error.strerror} ({error.filename or spec.cwd})\n".encode())
    finally:
        os._exit(_CANNOT_START)


def _restrict() -> None:
    """No privilege through set-uid programs, no core dumps (they hold prompts and weights), first to go at OOM."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(_OOM_SCORE)


def _leave_guard(lifeline: int) -> None:
    """Fork the guard, twice, so that the engine never sees a child that it did not start."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    if os.fork() == 0:
        _guard(lifeline)
    os._exit(0)


def _guard(lifeline: int) -> NoReturn:
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        _prctl(_PR_SET_NAME, GUARD_NAME.encode(), 0, 0, 0)
        os.closerange(0, lifeline)
        os.closerange(lifeline + 1, 1 << 16)
        os.read(lifeline, 1)
    finally:
        # We are in the group, so the group is still the engine's: no number can have been given away.
        os.killpg(0, signal.SIGKILL)
        os._exit(0)
