"""The processes that yard keeps alive: started with the descriptors that they inherit, started again when they end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from modelyard.lifeline import die_with_parent

BACKOFF_BASE_S = 0.1
# Many times as long as a start takes: who lived longer did not die of it, and the next start is at once again.
STEADY_AFTER_S = 5.0
# Signs of life that did not come. A disk that is written to by others may hold up a journal for seconds: patience costs
# less than the streams of a gateway that would have gone on.
SILENT_AFTER_S = 10.0
LOOK_AT_MOST_S = 1.0


@dataclass(slots=True)
class Child:
    """One process by role. `argv` is what to run; `descriptors` are inherited under their own numbers. However often
    it ends, it is started again within `backoff_cap_s`. One that `tells_ready` gets the writing end of a pipe as
    `--ready-fd`, and says by a byte in it that it serves, and by one more every second or so that it still does. One
    that has served and says nothing for SILENT_AFTER_S is stopped or hangs: it is killed. `ready_fd` is our end."""

    role: str
    argv: list[str]
    descriptors: tuple[int, ...]
    log: IO[bytes]
    environ: dict[str, str]
    backoff_cap_s: float
    tells_ready: bool = False
    is_ready: bool = False
    process: subprocess.Popen[bytes] | None = None
    ready_fd: int = -1
    silent_s: float = 0.0
    looked_at: float = 0.0
    started_at: float = 0.0
    start_again_at: float = 0.0
    ends_in_a_row: int = 0

    def look(self, now: float, jitter: Callable[[], float], say: Callable[[str], None]) -> None:
        """Reap it if it ended, and start it (again) when its back-off (full jitter) is over. The first restart is at
        once: clients are waiting in the socket's backlog."""
        if self.process is not None:
            status = self.process.poll()
            if status is None:
                self.hear(now, say)
                return
            self.process = None
            self.is_ready = False
            self.close()
            self._back_off(f"ended ({_words(status)})", now, jitter, say)
        if now >= self.start_again_at:
            try:
                self._start(now)
            except (OSError, subprocess.SubprocessError) as error:
                # No memory or no process left: that passes, and what runs already must not end for it.
                self._back_off(f"cannot be started ({error})", now, jitter, say)

    def _start(self, now: float) -> None:
        self.started_at = self.looked_at = now
        self.silent_s = 0.0
        argv, descriptors, told = self.argv, self.descriptors, -1
        if self.tells_ready:
            self.ready_fd, told = os.pipe()
            os.set_blocking(self.ready_fd, False)
            argv, descriptors = [*argv, "--ready-fd", str(told)], (*descriptors, told)
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                pass_fds=descriptors,
                env=self.environ,
                # From the first instruction: a child that still loads its modules holds our port already.
                preexec_fn=die_with_parent,
                # A Ctrl-C at the terminal reaches yard alone; it decides who ends when.
                process_group=0,
            )
        except BaseException:
            self.close()
            raise
        finally:
            if told >= 0:
                os.close(told)

    def hear(self, now: float, say: Callable[[str], None]) -> None:
        """What it has said since it was last heard. The end of the pipe is that of the process: `poll` tells of
        that."""
        if self.ready_fd < 0:
            return
        # A pause of ours (a busy machine, a frozen container) is no silence of the child's: it had no time either.
        self.silent_s += min(now - self.looked_at, LOOK_AT_MOST_S)
        self.looked_at = now
        try:
            said = os.read(self.ready_fd, 4096)
        except BlockingIOError:
            said = None
        if said == b"":
            self.close()
        elif said:
            self.is_ready, self.silent_s = True, 0.0
        elif self.is_ready and self.silent_s > SILENT_AFTER_S:
            say(f"{self.role} has given no sign of life for {SILENT_AFTER_S:g} s; it is killed")
            self.signal(signal.SIGKILL)
            self.silent_s = 0.0

    def close(self) -> None:
        """Give up our end of its pipe: it has ended, or nobody listens to it any more."""
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def _back_off(self, what: str, now: float, jitter: Callable[[], float], say: Callable[[str], None]) -> None:
        self.ends_in_a_row = 1 if now - self.started_at > STEADY_AFTER_S else self.ends_in_a_row + 1
        most = min(self.backoff_cap_s, BACKOFF_BASE_S * 2**self.ends_in_a_row) if self.ends_in_a_row > 1 else 0.0
        delay_s = jitter() * most
        self.start_again_at = now + delay_s
        say(f"{self.role} {what}; starts again in {delay_s:.1f} s")

    def signal(self, number: int) -> None:
        """To this very child, never to a bare pid: a process that we have not reaped keeps its number."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None


def _words(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit {status}"
