"""Both ends of the wire at their barest: a client that sends any bytes, an engine that keeps every byte it was sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httptools

from modelyard.selftest.connection import Lost

# Exactly what the gateway writes before a body; anything else at the engine was not constructed.
ENGINE_FIELDS = {b"host": b"engine", b"content-type": b"application/json"}


@dataclass(frozen=True)
class Heard:
    """All answers of one connection in their order, and whether the other side had closed it when we stopped."""

    statuses: tuple[int, ...]
    bodies: tuple[bytes, ...]
    heads: tuple[dict[str, str], ...]
    closed: bool


async def say(
    port: int, data: bytes, *, within_s: float = 10.0, piece_bytes: int = 0, last: bool = False, head: bool = False
) -> Heard:
    """Send `data` on a connection of its own (in pieces, if so asked) and hear all answers until it is closed.

    With `last` a request is sent behind it that closes, and its answer is heard too: it shows that the connection was
    still in step. `head`: the answer has no body, whatever its length says. Raises TimeoutError where the connection
    stays open, Lost where what came is not HTTP."""
    if last:
        data += b"GET /health HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = _Answers()
    first = b""
    try:
        async with asyncio.timeout(within_s):
            sending = asyncio.create_task(_send(writer, data, piece_bytes or len(data)))
            try:
                while heard := await reader.read(262_144):
                    first = first or heard
                    if not head:
                        answers.feed(heard)
            except ConnectionResetError:
                pass
            sending.cancel()
    finally:
        writer.transport.abort()
    if head and (status := re.match(rb"HTTP/1\.1 (\d{3}) ", first)):
        return Heard((int(status[1]),), (b"",), ({},), closed=True)
    return answers.heard()


async def _send(writer: asyncio.StreamWriter, data: bytes, piece_bytes: int) -> None:
    try:
        for start in range(0, len(data), piece_bytes):
            writer.write(data[start : start + piece_bytes])
            await writer.drain()
            if piece_bytes < len(data):
                await asyncio.sleep(0)
    except (ConnectionError, asyncio.CancelledError):
        return


class _Answers:
    def __init__(self) -> None:
        self._statuses: list[int] = []
        self._bodies: list[bytes] = []
        self._heads: list[dict[str, str]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._head: dict[str, str] = {}

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            raise Lost(f"what came is not HTTP: {error}") from error

    def heard(self) -> Heard:
        return Heard(tuple(self._statuses), tuple(self._bodies), tuple(self._heads), closed=True)

    def on_message_begin(self) -> None:
        self._body, self._head = bytearray(), {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._statuses.append(self._parser.get_status_code())
        self._bodies.append(bytes(self._body))
        self._heads.append(self._head)


def plain_answer(body: bytes) -> bytes:
    """A whole chat answer, as an engine gives it to any request."""
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    text = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)


@dataclass(slots=True)
class EngineRequest:
    """One request as the engine got it."""

    method: bytes = b""
    target: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""

    def json(self) -> Any:
        """Raises ValueError where the body is no JSON."""
        return json.loads(self.body)

    def not_constructed(self) -> list[bytes]:
        """Names of header fields that the gateway does not write itself, or not with this value."""
        length = str(len(self.body)).encode()
        expected = {**ENGINE_FIELDS, b"content-length": length}
        return [name for name, value in self.fields if expected.get(name) != value]


class RecordingEngine:
    """Listens on a unix socket, keeps what it is sent in `requests`, answers what `answer` makes of each body. `broken`
    are those whose bytes were no HTTP. `connections` counts."""

    def __init__(self, path: str, answer: Callable[[bytes], bytes] = plain_answer) -> None:
        self.address = f"unix:{path}"
        self.answer = answer
        self.requests: list[EngineRequest] = []
        self.broken: list[str] = []
        self.connections = 0
        self._path = path
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _EngineConnection(self), self._path, backlog=4096)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    def take(self) -> list[EngineRequest]:
        """The requests since the last look."""
        taken, self.requests = self.requests, []
        return taken


class _EngineConnection(asyncio.Protocol):
    def __init__(self, engine: RecordingEngine) -> None:
        engine.connections += 1
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._request = EngineRequest()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._engine.broken.append(f"{error}: {data[:200]!r}")
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._request = EngineRequest()

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.fields.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._request.body += body

    def on_message_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method()
        self._engine.requests.append(request)
        self._transport.write(self._engine.answer(request.body))
