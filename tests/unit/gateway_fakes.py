"""A gateway without sockets: transports that remember, and a service whose engine is played by the test."""

from __future__ import annotations

import json
import math
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from modelyard.gateway.client import ClientConnection
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.limits import WIRE, WireLimits
from modelyard.gateway.service import Service
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.gateway.worker import Worker
from modelyard.observe.journal import read_journal
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import KeyCreated, Scopes
from modelyard.records.secrets import key_record
from modelyard.records.topology import Deployment, Policy, Replica, Topology

SECRET = "my_0123456789ab_secret"
MODEL = "m"


class FakeTransport:
    """What asyncio promises of a transport, without the kernel: `lose()` plays the end of the connection."""

    def __init__(self, protocol: Any = None) -> None:
        self.protocol = protocol
        self.written = bytearray()
        self.closed = self.aborted = self.ended = False
        self.reading = True
        self.unread = 0
        self.peer: Any = None

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Any:
        return self.peer if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def lose(self) -> None:
        self.closed = True
        self.protocol.connection_lost(None)

    def take(self) -> bytes:
        """What was written since the last look."""
        data = bytes(self.written)
        self.written.clear()
        return data


ONE_REPLICA = (Replica(name="r0", launch="l0", address="unix:/nowhere", max_in_flight=4),)


def deployment(name: str = MODEL, replicas: tuple[Replica, ...] = ONE_REPLICA, **changes: Any) -> Deployment:
    """`changes` are fields of the deployment, or of its policy."""
    policy = Policy(**{field: changes.pop(field) for field in Policy.__struct_fields__ if field in changes})
    plain = {"engine_model": "e", "context_tokens": 0, "created_at": 1, "open": True, "policy": policy}
    return Deployment(name=name, replicas=replicas, **{**plain, **changes})


@dataclass
class World:
    """One worker, one deployment, one key. `client()` connects somebody; `engine()` puts an idle engine connection
    where the next request will find it."""

    folder: Path
    wire: WireLimits = WIRE
    shape: Deployment = field(default_factory=deployment)
    generation: int = 0

    def __post_init__(self) -> None:
        journal = JournalWriter(self.folder)
        weakref.finalize(self, journal.close)
        self.worker = Worker(journal, Keyring(), self.wire)
        self.service = Service(self.worker)
        self.add_key(SECRET)
        self.apply(self.shape)

    def add_key(
        self, secret: str, *, expires_at: float | None = None, scopes: Scopes | None = None, priority: int = 0
    ) -> str:
        record = key_record(secret, "test", time.time(), expires_at, None, scopes)
        record = msgspec.structs.replace(record, priority=priority)
        self.worker.keyring.apply(KeyCreated(key=record))
        return record.id

    def apply(self, *deployments: Deployment) -> None:
        self.generation += 1
        self.service.apply(Topology(generation=self.generation, deployments=deployments))

    def client(self, peer: Any = None) -> tuple[ClientConnection, FakeTransport]:
        connection = self.service.connection()
        transport = FakeTransport(connection)
        transport.peer = peer
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def engine(self, replica: str = "r0", model: str = MODEL) -> tuple[UpstreamConnection, FakeTransport]:
        connection = UpstreamConnection()
        transport = FakeTransport(connection)
        connection.connection_made(transport)  # type: ignore[arg-type]
        # From now on: a test's process that is stopped for two seconds here would find it too old, and open another.
        connection.idle_since = math.inf
        self.worker.admissions[model].seats[replica].pool.idle.append(connection)
        return connection, transport

    def records(self) -> list[RequestRecord]:
        return list(read_journal(self.folder).records)


def chat(**fields: Any) -> bytes:
    """A chat request's body, written compactly as client libraries do."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **fields}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def post(body: bytes, *lines: str, secret: str = SECRET, path: str = "/v1/chat/completions") -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {secret}", *lines]
    return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


def get(path: str, *lines: str, secret: str = SECRET) -> bytes:
    return "\r\n".join(
        [f"GET {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {secret}", *lines, "", ""]
    ).encode()


def answer(content: str = "hi", *, prompt_tokens: int = 3, completion_tokens: int = 1) -> bytes:
    """An engine's plain response."""
    value = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def event(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode()


USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


def split_responses(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Every response in what a client received: status, headers, body (chunks joined). Strict: raises where the bytes
    are not a sequence of whole HTTP/1.1 responses."""
    found: list[tuple[int, dict[str, str], bytes]] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"no end of the head: {head!r}"
        status_line, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if headers.get("transfer-encoding") == "chunked":
            body, data = _join_chunks(data)
        else:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length, "the body is cut"
        found.append((int(status_line.split(" ")[1]), headers, body))
    return found


def _join_chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size_line, separator, data = data.partition(b"\r\n")
        assert separator, "the stream has no last chunk"
        size = int(size_line, 16)
        assert data[size : size + 2] == b"\r\n", f"a chunk of {size} bytes has no end"
        body += data[:size]
        data = data[size + 2 :]
        if size == 0:
            return body, data
