"""A real gateway process for tests: started as yard starts it, with files that the test writes; and raw connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai

from modelyard.observe.journal import read_journal
from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import KeyCreated, KeyEvent, Limits, Scopes
from modelyard.records.secrets import key_record
from modelyard.records.topology import Deployment, Policy, Replica, Topology
from modelyard.state import StateDirectory, write_atomically

KEY = "my_0123456789ab_integration"
MODEL = "m"


def replica(address: str, name: str = "r0", **changes: Any) -> Replica:
    return Replica(**{"name": name, "launch": "l0", "address": address, "max_in_flight": 16, **changes})


def deployment(*replicas: Replica, name: str = MODEL, **changes: Any) -> Deployment:
    """`changes` are fields of the deployment, or of its policy."""
    policy = Policy(**{field: changes.pop(field) for field in Policy.__struct_fields__ if field in changes})
    plain = {"engine_model": "fake", "context_tokens": 8192, "created_at": 1, "open": True, "policy": policy}
    return Deployment(name=name, replicas=replicas, **{**plain, **changes})


@dataclass
class Gateway:
    """`with Gateway(state) as gateway:` runs one. `publish` and `log_key` write what control would write."""

    state: StateDirectory
    generation: int = 0

    def __enter__(self) -> Self:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(1024)
        self.port: int = self.listener.getsockname()[1]
        if not self.state.keys.exists():
            self.log_key(KeyCreated(key=key_record(KEY, "test", time.time())))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        os.close(self.lifeline)
        self.listener.close()

    def start(self, program: Sequence[str] = ("-m", "modelyard.gateway")) -> None:
        """A process on the listening socket, as yard starts another after one has ended."""
        lifeline, self.lifeline = os.pipe()
        argv = [sys.executable, *program, "--state", str(self.state.root)]
        log = self._log.open("ab")
        argv += ["--listen-fd", str(self.listener.fileno()), "--lifeline-fd", str(lifeline)]
        self.process = subprocess.Popen(argv, pass_fds=(self.listener.fileno(), lifeline), stdout=log, stderr=log)
        os.close(lifeline)
        log.close()
        with self.wire() as wire:
            assert wire.ask(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").status == 200

    def publish(self, *deployments: Deployment) -> None:
        self.generation += 1
        write_atomically(self.state.topology, encode(Topology(generation=self.generation, deployments=deployments)))

    def log_key(self, event: KeyEvent) -> None:
        with self.state.keys.open("ab") as file:
            file.write(encode(event) + b"\n")

    def add_key(self, secret: str, scopes: Scopes | None = None, limits: Limits | None = None) -> None:
        self.log_key(KeyCreated(key=key_record(secret, "more", time.time(), scopes=scopes, limits=limits)))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wire(self) -> Wire:
        return Wire(("127.0.0.1", self.port))

    def client(self, key: str = KEY) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=30)

    def records(self) -> list[RequestRecord]:
        """Those of inference requests, of every process that ran here."""
        found = read_journal(self.state.journal).records
        return [record for record in found if not record.endpoint.startswith(("/v1/models", "/health", "/ready"))]

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def printed(self) -> str:
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.state.root / "gateway.log"


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One TCP connection, byte by byte. Reading stops at a deadline with an error, never hangs."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = 20.0) -> None:
        self.socket = socket.create_connection(address, timeout=timeout_s)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> Response:
        self.send(data)
        return self.response()

    def response(self) -> Response:
        head = self._until(b"\r\n\r\n").decode()
        status_line, *lines = head.rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self._exactly(int(headers.get("content-length", 0)))
        return Response(int(status_line.split(" ")[1]), headers, body)

    def at_end(self) -> bool:
        """Whether the other side has closed, with nothing more to read."""
        try:
            return self._unread == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def read_some(self) -> bytes:
        return self.socket.recv(65_536)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._until(b"\r\n"), 16):
            yield self._exactly(size)
            assert self._until(b"\r\n") == b"\r\n"
        assert self._until(b"\r\n") == b"\r\n"

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            self._more()
        found, _, self._unread = self._unread.partition(mark)
        return found + mark

    def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            self._more()
        found, self._unread = self._unread[:size], self._unread[size:]
        return found

    def _more(self) -> None:
        data = self.socket.recv(1_048_576)
        if not data:
            raise ConnectionError(f"the connection ended; unread: {self._unread[:200]!r}")
        self._unread += data


def post(
    body: bytes, *lines: str, key: str = KEY, path: str = "/v1/chat/completions", announced: int | None = None
) -> bytes:
    """A request; `announced` is the length that its head claims, if it is not the body's."""
    head = [f"POST {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {key}", *lines]
    head += [f"content-length: {len(body) if announced is None else announced}"]
    return "\r\n".join([*head, "", ""]).encode() + body
