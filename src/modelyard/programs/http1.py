"""A small HTTP/1.1 server for the programs that run inside foreign environments: standard library only.

One connection serves one request at a time. The handler's task is cancelled the moment the client goes away, so
"client gone" is ordinary task cancellation everywhere above this file. Request bodies need a Content-Length; the
only client of such a server is our own gateway or someone debugging on loopback, and neither sends chunked bodies.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 8 * 1024 * 1024
HIGH_WATER_BYTES = 64 * 1024

_ONCE = frozenset(("content-length", "host", "transfer-encoding"))


class BadRequest(Exception):
    """The request cannot be served; the server answers `status` with an OpenAI-shaped error and `message`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {"retry-after": str(retry_after_s)} if retry_after_s is not None else {}


@dataclass(frozen=True)
class Request:
    """`method` and `path` (without the query) as sent; header names in lower case; `body` whole."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: str = ""


@dataclass
class Reply:
    """Where a handler writes its answer: `json` or `text` once, or `start` then `send` many times then `finish`."""

    transport: asyncio.Transport
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    keep_alive: bool = True
    streaming: bool = False

    def json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self.text(status, json.dumps(value, ensure_ascii=False), "application/json", headers)

    def text(self, status: int, text: str, content_type: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        sizes = {"content-type": content_type, "content-length": str(len(body))}
        self.started = True
        self.transport.write(_head(status, {**sizes, **(headers or {})}, self.keep_alive) + body)

    def error(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.json(status, error_body(status, message, param, code), headers)

    def start(self, status: int = 200, content_type: str = "text/event-stream; charset=utf-8") -> None:
        """Send the head of a chunked response."""
        self.started = self.streaming = True
        head = {"content-type": content_type, "transfer-encoding": "chunked", "cache-control": "no-store"}
        self.transport.write(_head(status, head, self.keep_alive))

    def push(self, data: bytes) -> None:
        """Send one chunk without waiting, for answers whose whole size is bounded anyway."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def send(self, data: bytes) -> None:
        """Send one chunk; waits while the client reads slower than we write."""
        self.push(data)
        await self.writable.wait()

    def finish(self) -> None:
        """End a chunked response."""
        self.transport.write(b"0\r\n\r\n")


Handler = Callable[[Request, Reply], Awaitable[None]]


class Connection(asyncio.Protocol):
    """Parses requests from one client and runs the handler for each in turn."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._reply: Reply | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        if self._reply is not None:
            self._reply.writable.clear()

    def resume_writing(self) -> None:
        if self._reply is not None:
            self._reply.writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is not None and len(self._buffer) > MAX_HEAD_BYTES + MAX_BODY_BYTES and self._transport:
            self._transport.abort()  # one request waits behind the served one, never an endless stream of them
            return
        self._serve_next()

    def _serve_next(self) -> None:
        if self._task is not None or self._transport is None or self._transport.is_closing():
            return
        try:
            request, keep_alive = self._take_request()
        except BadRequest as refused:
            reply = Reply(self._transport, keep_alive=False)
            reply.error(refused.status, str(refused), param=refused.param, code=refused.code)
            self._transport.close()
            return
        if request is None:
            return
        self._reply = Reply(self._transport, keep_alive=keep_alive)
        self._reply.writable.set()
        self._task = asyncio.get_running_loop().create_task(self._run(request, self._reply))

    def _take_request(self) -> tuple[Request | None, bool]:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadRequest("the request head is too large", status=431)
            return None, True
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest("malformed request line")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequest("malformed header")
            if name.lower() in headers and name.lower() in _ONCE:
                raise BadRequest(f"{name} is given twice")
            headers[name.lower()] = value.strip()
        if "transfer-encoding" in headers:
            raise BadRequest("send a Content-Length, not a chunked body", status=411)
        length_text = headers.get("content-length", "0")
        if not length_text.isascii() or not length_text.isdigit():
            raise BadRequest("malformed Content-Length")
        length = int(length_text)
        if length > MAX_BODY_BYTES:
            raise BadRequest("the request body is too large", status=413)
        if len(self._buffer) < end + 4 + length:
            return None, True
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        path, _, query = words[1].partition("?")
        keep_alive = headers.get("connection", "").lower() != "close" and words[2] != "HTTP/1.0"
        return Request(words[0], path, headers, body, query), keep_alive

    async def _run(self, request: Request, reply: Reply) -> None:
        assert self._transport is not None
        try:
            await self._handler(request, reply)
        except BadRequest as refused:
            self._refuse(reply, refused)
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception as error:  # the outermost border of the server: one request must not end it
            print(f"error: {request.method} {request.path}: {type(error).__name__}: {error}", flush=True)
            self._refuse(reply, BadRequest("internal error", status=500))
        self._task = self._reply = None
        if not reply.keep_alive:
            self._transport.close()
        self._serve_next()

    def _refuse(self, reply: Reply, refused: BadRequest) -> None:
        assert self._transport is not None
        if reply.started:
            # Half an answer is out: only a connection that ends without the last chunk tells that it is not whole.
            self._transport.close()
            reply.keep_alive = False
        else:
            reply.error(refused.status, str(refused), param=refused.param, code=refused.code, headers=refused.headers)


def error_body(status: int, message: str, param: str | None, code: str | None) -> dict[str, object]:
    """An error as OpenAI's clients expect it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _head(status: int, headers: dict[str, str], keep_alive: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not keep_alive:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def sse(value: object) -> bytes:
    """One server-sent event; JSON never holds a raw line break, so no field can be injected."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def listen(handler: Handler, address: str) -> asyncio.Server:
    """Serve on `unix:/path` or `host:port`; a stale socket file of a dead process is replaced."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if os.path.exists(path):
            os.unlink(path)
        return await loop.create_unix_server(lambda: Connection(handler), path, backlog=1024)
    host, _, port = address.rpartition(":")
    return await loop.create_server(lambda: Connection(handler), host, int(port), backlog=1024)
