"""The shim: parent of one engine, in a session of its own. `python -m modelyard.node.shim SPECFILE`

It owns the engine's processes, log and exit status, and outlives control: when control dies it dials the rendezvous
again and the next control adopts it by that connection. What it does not outlive is the lease. One thread, one loop,
no asyncio: there is one shim per replica, so its memory and its start count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import sys
import time

from modelyard.engines.contract import ExitReport
from modelyard.errors import ModelyardError
from modelyard.node import launch_files
from modelyard.node.engine_log import EngineLog, Lines
from modelyard.node.engine_process import EngineProcess
from modelyard.node.lease import kill_margin_s, remaining_s
from modelyard.node.oom import OomCounter
from modelyard.node.shim_link import Greeting, ShimLink
from modelyard.node.shim_wire import Exited, Hello, Kill, Release, ShimSpec, Stop, ToShim
from modelyard.records.base import decode

_READ_BYTES = 65536


class Shim:
    """Runs one launch from start to end: `run` returns when there is nothing left to own."""

    def __init__(self, spec: ShimSpec, spec_path: str) -> None:
        self._spec, self._spec_path = spec, spec_path
        self._margin_s = kill_margin_s(spec.lease_s)
        self._selector = selectors.DefaultSelector()
        self._signals = _signal_socket()
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)
        self._link = ShimLink(spec.rendezvous, self._selector, self._greeting, self._on_command)
        self._log = EngineLog(spec.log_path, spec.log_max_bytes, spec.log_keep)
        self._lines = Lines()
        self._oom = OomCounter()
        self._exited: Exited | None = None
        self._asked = False
        self._done = False
        self._orphaned = False
        self._lease_at = 0.0
        self._kill_at: float | None = None
        launch_files.write(spec)
        self._engine = EngineProcess(spec.spec)
        self._selector.register(self._engine.output, selectors.EVENT_READ, self._on_output)

    def run(self) -> None:
        while not self._done:
            now = time.monotonic()
            deadlines = [at for at in (self._lease_at, self._kill_at, self._link.due_at) if at is not None]
            for key, mask in self._selector.select(max(0.0, min(deadlines) - now)):
                # An earlier handler of this round may have closed this one's file.
                if key.fd in self._selector.get_map():
                    key.data(mask)
            self._look_at_engine()
            self._look_at_clock(time.monotonic())
        self._clean_up()

    def _look_at_engine(self) -> None:
        if self._exited is None and self._engine.poll():
            self._take_the_rest()
            self._kill_at = None
            report = ExitReport(
                code=self._engine.code,
                signal=self._engine.signal,
                out_of_memory=self._engine.signal == signal.SIGKILL and not self._asked and self._oom.rose(),
                tail=tuple(self._log.tail),
            )
            self._exited = Exited(report=report, asked=self._asked)
            self._link.say(self._exited)

    def _look_at_clock(self, now: float) -> None:
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._engine.kill()
        if now >= self._lease_at:
            self._look_at_lease(now)
        self._link.tick(now)

    def _look_at_lease(self, now: float) -> None:
        left = remaining_s(self._spec.lease, self._spec.lease_s, now) - self._margin_s
        if left > 0:
            self._lease_at = now + left
            self._oom.rose()
            return
        self._orphaned = True
        self._engine.kill()
        self._done = self._exited is not None
        self._lease_at = now + self._margin_s / 10

    def _on_command(self, command: ToShim) -> None:
        match command:
            case Stop(grace_s=grace_s):
                self._stop(grace_s)
            case Kill():
                self._asked = True
                self._engine.kill()
            case Release():
                self._done = self._exited is not None

    def _stop(self, grace_s: float) -> None:
        if self._exited is None:
            self._asked = True
            self._engine.terminate()
            self._kill_at = min(self._kill_at or float("inf"), time.monotonic() + grace_s)

    def _on_signal(self, _mask: int) -> None:
        """SIGCHLD only wakes the loop; SIGTERM is an operator's or the machine's way to say Stop."""
        if signal.SIGTERM in self._signals.recv(64):
            self._stop(self._spec.spec.terminate_grace_s)

    def _on_output(self, _mask: int) -> bool:
        """Take what the engine printed; False where there is no more."""
        try:
            data = os.read(self._engine.output, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._keep(self._lines.feed(data))
        else:
            self._selector.unregister(self._engine.output)
        return bool(data)

    def _take_the_rest(self) -> None:
        """After the end: what the pipe still holds, and not more, whoever else may hold its other end."""
        for _ in range(16):
            if self._engine.output not in self._selector.get_map() or not self._on_output(selectors.EVENT_READ):
                break
        if self._engine.output in self._selector.get_map():
            self._selector.unregister(self._engine.output)
        self._keep(self._lines.finish())

    def _keep(self, lines: list[str]) -> None:
        if lines:
            self._log.write(lines)
            self._link.say_lines(lines)

    def _greeting(self) -> Greeting:
        hello = Hello(
            replica=self._spec.replica,
            launch=self._spec.launch,
            shim_pid=os.getpid(),
            engine_pid=self._engine.pid,
            started_at=self._engine.started_at,
        )
        return Greeting(hello, self._log.tail, self._exited)

    def _clean_up(self) -> None:
        self._link.close()
        self._log.close()
        launch_files.remove(self._spec, self._spec_path)
        if self._orphaned:
            _remove_if_nobody_listens(self._spec.rendezvous)


def _remove_if_nobody_listens(path: str) -> None:
    """Remove the socket of a dead yard, and never that of one which was started meanwhile: it is taken aside, asked,
    and put back if somebody answers. Whoever dials in that instant finds nothing, and dials again."""
    aside = f"{path}.{os.getpid()}"
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dialled:
            if dialled.connect_ex(aside) == errno.ECONNREFUSED:
                os.unlink(aside)
            else:
                os.rename(aside, path)


def _signal_socket() -> socket.socket:
    """Signals as bytes to read: handlers do nothing, the loop does everything."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return reader


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m modelyard.node.shim SPECFILE", file=sys.stderr)
        return 2
    try:
        with open(arguments[0], "rb") as file:
            spec = decode(file.read(), ShimSpec)
    except (OSError, ModelyardError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    try:
        shim = Shim(spec, arguments[0])
    except OSError as error:
        print(f"{spec.replica}: launch {spec.launch} cannot be prepared: {error}", file=sys.stderr)
        launch_files.remove(spec, arguments[0])
        return 1
    shim.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
