"""A real gateway process, started as yard starts it, with the files that control would write."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from modelyard.gateway.listen import listening_socket
from modelyard.observe.journal import BEGINNING, read_journal
from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import KeyCreated, KeyEvent, Limits, Scopes
from modelyard.records.secrets import NewKey, key_record, new_key
from modelyard.records.topology import Deployment, Topology
from modelyard.selftest.connection import Connection, Lost, Response, connect
from modelyard.state import StateDirectory, write_atomically

STARTS_WITHIN_S = 30.0


class GatewayProcess:
    """`key` is a secret that may reach everything. The listening socket stays open over `kill` and `start`, as it does
    under yard; `host` is what it is bound to."""

    def __init__(self, state: StateDirectory, *, backlog: int = 1024) -> None:
        self.state = state
        self.key = f"my_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
        self.listener = listening_socket("127.0.0.1", 0)
        self.listener.listen(backlog)
        self.port: int = self.listener.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._generation = 0
        self.log_key(KeyCreated(key=key_record(self.key, "selftest", time.time())))

    async def start(self, *more: str) -> None:
        """Start it, again after a kill; `more` goes to its command line. Returns once it answers."""
        self._spawn(more)
        connection = await self.connect()
        await connection.ask(b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n", STARTS_WITHIN_S)
        connection.close()

    def _spawn(self, more: tuple[str, ...]) -> None:
        self.let_go()
        lifeline, self._lifeline = os.pipe()
        argv = [sys.executable, "-I", "-m", "modelyard.gateway", "--state", str(self.state.root)]
        argv += ["--listen-fd", str(self.listener.fileno()), "--lifeline-fd", str(lifeline), *more]
        with self._log.open("ab") as log:
            inherited = (self.listener.fileno(), lifeline)
            self.process = subprocess.Popen(argv, pass_fds=inherited, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(lifeline)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self.process.poll() if self.process is not None else None

    async def connect(self) -> Connection:
        return await connect(f"http://127.0.0.1:{self.port}")

    async def answer(self, request: bytes, within_s: float) -> Response | None:
        """To one request on a connection of its own; None where it ended without, or nothing came in time."""
        connection = await self.connect()
        try:
            return await connection.ask(request, within_s)
        except (Lost, TimeoutError):
            return None
        finally:
            connection.close()

    # What control would write; followed ten times a second.

    def publish(self, *deployments: Deployment) -> None:
        self._generation += 1
        topology = Topology(generation=self._generation, deployments=deployments)
        write_atomically(self.state.topology, encode(topology))

    def log_key(self, event: KeyEvent) -> None:
        with self.state.keys.open("ab") as file:
            file.write(encode(event) + b"\n")

    def add_key(self, name: str, scopes: Scopes | None = None, limits: Limits | None = None) -> NewKey:
        made = new_key(name, time.time(), scopes=scopes, limits=limits)
        self.log_key(KeyCreated(key=made.record))
        return made

    # What it leaves.

    def records(self) -> list[RequestRecord]:
        """Every record of the journal, of every process that ran on this state directory."""
        found: list[RequestRecord] = []
        checkpoint = BEGINNING
        while True:
            step = read_journal(self.state.journal, checkpoint)
            found += step.records
            checkpoint = step.checkpoint
            if not step.more:
                return found

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    # Its end.

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def wait(self, within_s: float = STARTS_WITHIN_S) -> int:
        """Until it has ended; its exit code."""
        assert self.process is not None
        return self.process.wait(within_s)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def let_go(self) -> None:
        """Kill and reap it; the listening socket stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            os.close(self._lifeline)

    def close(self) -> None:
        self.let_go()
        self.listener.close()

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def _log(self) -> Path:
        return self.state.logs / "gateway.log"
