"""Connections to engines: one request at a time on each, bytes handed on as they came.

A response is parsed for its framing only. What a lane gets of one read is the raw bytes, the body pieces in them, and
whether the read ended exactly between two chunks: then the bytes may travel to the client untouched."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

import httptools

from modelyard.gateway.limits import WIRE


class Exchange(Protocol):
    """Who sent the request and gets what comes back. After `upstream_done` or `upstream_lost` nothing more comes."""

    def upstream_head(self, status: int, content_type: bytes, retry_after: bytes) -> None: ...

    def upstream_read(self, raw: bytes, pieces: list[bytes], between_chunks: bool, done: bool) -> None: ...

    def upstream_lost(self, cause: str) -> None: ...


class Pool:
    """Open, idle connections to one launch of an engine, newest first."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.idle: list[UpstreamConnection] = []
        self.closed = False

    def take(self, now: float) -> UpstreamConnection | None:
        """A connection that was idle for less than engines keep theirs open (uvicorn's default is 5 s)."""
        while self.idle:
            connection = self.idle.pop()
            if now - connection.idle_since < WIRE.upstream_idle_s and connection.usable:
                return connection
            connection.abort()
        return None

    def give(self, connection: UpstreamConnection, now: float) -> None:
        if self.closed or not connection.usable:
            connection.abort()
            return
        connection.idle_since = now
        self.idle.append(connection)

    async def connect(self) -> UpstreamConnection:
        """A fresh connection. Raises OSError or TimeoutError where the engine does not take it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WIRE.upstream_connect_timeout_s):
            if self.address.startswith("unix:"):
                path = self.address.removeprefix("unix:")
                _, connection = await loop.create_unix_connection(UpstreamConnection, path)
            else:
                host, _, port = self.address.removeprefix("http://").rstrip("/").rpartition(":")
                _, connection = await loop.create_connection(UpstreamConnection, host, int(port))
        return connection

    def expire(self, now: float) -> None:
        """Close what was idle too long; the oldest come first."""
        while self.idle and now - self.idle[0].idle_since >= WIRE.upstream_idle_s:
            self.idle.pop(0).abort()

    def close(self) -> None:
        self.closed = True
        while self.idle:
            self.idle.pop().abort()


class UpstreamConnection(asyncio.Protocol):
    """`used` tells a re-used connection from a fresh one: only the former may have died of old age."""

    __slots__ = (
        "_between_chunks",
        "_content_type",
        "_done",
        "_exchange",
        "_head_seen",
        "_parser",
        "_pieces",
        "_retry_after",
        "_transport",
        "answered",
        "idle_since",
        "usable",
        "used",
    )

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._pieces: list[bytes] = []
        self.usable = True
        self.used = False
        self.answered = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_seen = self._done = False
        self._between_chunks = True
        self._content_type = self._retry_after = b""

    # The exchange's side.

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Send a whole request; its response goes to `exchange`."""
        assert self._transport is not None
        self._exchange = exchange
        self.answered = False
        self._transport.write(request)

    def release(self) -> None:
        """The response is whole: ready for the next request."""
        self._exchange = None
        self.used = True
        self._reset()

    def abort(self) -> None:
        """Close at once: how an engine learns that nobody waits for its answer."""
        self._exchange = None
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's: the promise is the interface.
        self._transport = transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.upstream_lost("the engine closed the connection")

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nobody asked for anything: whatever it is, this connection's framing is in doubt.
            self.abort()
            return
        self.answered = True
        in_head = not self._head_seen
        self._pieces = []
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._fail(f"the engine's answer is not HTTP: {error}")
            return
        if not self._head_seen or self._exchange is None:
            return
        whole = self._between_chunks
        if in_head:
            data, whole = _after_head(data, whole)
        exchange.upstream_read(data, self._pieces, whole, self._done)

    def _fail(self, cause: str) -> None:
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.upstream_lost(cause)

    # The parser's side.

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self._content_type = value
        elif lowered == b"retry-after":
            self._retry_after = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._head_seen:
            raise ValueError(f"an unexpected head with status {status}")
        self._head_seen = True
        assert self._exchange is not None
        self._exchange.upstream_head(status, self._content_type, self._retry_after)

    def on_body(self, body: bytes) -> None:
        self._between_chunks = False
        self._pieces.append(body)

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        self._done = True
        # Only here does the parser know: once it has moved on, it has forgotten.
        self.usable = self._parser.should_keep_alive()


def _after_head(data: bytes, whole: bool) -> tuple[bytes, bool]:
    """What follows the head in the read that ended it; not raw where the head's end lies across two reads."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return b"", False
    return data[end + 4 :], whole
