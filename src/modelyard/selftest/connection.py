"""A client connection as light as Python allows, that notices everything: uvloop transport, httptools parser."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, cast

import httptools


class Lost(Exception):
    """The connection ended, or stopped being HTTP, before the response was whole; the text says which."""


@dataclass(frozen=True)
class Response:
    """`headers` have lower-case names. Times are monotonic seconds; `first_at` is when the body's first byte came."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: float
    first_at: float
    ended_at: float

    @property
    def took_s(self) -> float:
        return self.ended_at - self.sent_at

    def json(self) -> Any:
        """Raises ValueError where the body is no JSON."""
        return json.loads(self.body)

    def events(self) -> list[bytes]:
        """The server-sent events without comments, each with its blank line; a rest without one comes last."""
        return events_of(self.body)


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time: `ask`, or `send` and then what is to be waited for."""

    def __init__(self) -> None:
        self.opened_at = time.monotonic()
        self.open = True
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self._loss = ""
        self._is_whole = True
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = self._first_at = self._ended_at = 0.0

    async def ask(self, request: bytes, within_s: float) -> Response:
        """Send and wait for the whole response. Raises Lost, or TimeoutError."""
        self.send(request)
        return await self.response(within_s)

    def send(self, request: bytes) -> None:
        """Begin a request; what came of the one before is forgotten."""
        self.status, self._is_whole, self._first_at = 0, False, 0.0
        self.headers = {}
        self.body = bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = time.monotonic()
        self.write(request)

    def write(self, data: bytes) -> None:
        """Bytes as they are: the rest of a request, or anything else."""
        if self.open and self._transport is not None:
            self._transport.write(data)

    async def response(self, within_s: float) -> Response:
        await self._wait(lambda: self._is_whole, within_s)
        return Response(
            self.status, self.headers, bytes(self.body), self._sent_at, self._first_at or self._ended_at, self._ended_at
        )

    async def head(self, within_s: float) -> int:
        """Until the head is whole; the status."""
        await self._wait(lambda: self.status > 0, within_s)
        return self.status

    async def body_has(self, size_bytes: int, within_s: float) -> None:
        """Until that much of the body has come, or all of it."""
        await self._wait(lambda: self._is_whole or len(self.body) >= size_bytes, within_s)

    async def ends(self, within_s: float) -> None:
        """Until the other side has closed. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while self.open:
                self._news.clear()
                await self._news.wait()

    def close(self) -> None:
        """At once, as a client that is gone."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read nothing more: a slow reader."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    async def _wait(self, condition: Any, within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                if not self.open:
                    raise Lost(self._loss or "the connection ended")
                self._news.clear()
                await self._news.wait()

    # The event loop's and the parser's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._loss = f"what came is not HTTP: {error}"
            self.close()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._loss = self._loss or (f"the connection ended: {exc}" if exc else "the connection was closed")
        self._news.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._first_at = self._first_at or time.monotonic()
        self.body += body

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self._is_whole, self._ended_at = True, time.monotonic()
            self.open = self.open and self._parser.should_keep_alive()


async def connect(address: str) -> Connection:
    """`address` is `unix:/path` or `http://host:port`. Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        return (await loop.create_unix_connection(Connection, address.removeprefix("unix:")))[1]
    host, _, port = address.removeprefix("http://").rpartition(":")
    return (await loop.create_connection(Connection, host, int(port)))[1]


def post(path: str, key: str, body: bytes | dict[str, Any], *lines: str) -> bytes:
    """A whole request; `lines` are more header lines."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {key}", "content-type: application/json"]
    return "\r\n".join([*head, *lines, f"content-length: {len(data)}", "", ""]).encode() + data


def chat(model: str, *, stream: bool = False, tokens: int = 8, content: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "max_tokens": tokens, "stream": stream, **more}


def events_of(body: bytes) -> list[bytes]:
    """The server-sent events of a body without comments, each with its blank line; a rest without one comes last."""
    parts = body.split(b"\n\n")
    events = [part + b"\n\n" for part in parts[:-1] if not part.startswith(b":")]
    return [*events, parts[-1]] if parts[-1] else events
