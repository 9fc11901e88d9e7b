"""Connections to engines: one request at a time on each, bytes handed on as they came.

A response is parsed for its framing only. What a lane gets of one read is the raw bytes, the body pieces in them, and
whether the read ended exactly between two chunks: then the bytes may travel to the client untouched."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Protocol, cast

import httptools

from modelyard.errors import UsageError
from modelyard.gateway.limits import WIRE
from modelyard.gateway.repeated_head import RepeatedHead


class Exchange(Protocol):
    """Who sent the request and gets what comes back. After a read that is `done`, or `upstream_lost`, nothing more
    comes."""

    def upstream_head(self, status: int, content_type: bytes, retry_after: bytes) -> None: ...

    def upstream_chunk(self, raw: bytes) -> bool:
        """`raw` is exactly one chunk, framing included. False: it did not pass, hand it over by `upstream_read`."""
        ...

    def upstream_read(self, raw: bytes, pieces: list[bytes], done: bool) -> None:
        """The body `pieces` of one read; `raw` is the read itself where it is made of whole chunks, else empty."""
        ...

    def upstream_whole(self, body: bytes) -> None:
        """A 200 with a plain body, all of it in one read, in place of head and reads."""
        ...

    def upstream_lost(self, cause: str) -> None: ...


def parse_address(address: str) -> str | tuple[str, int]:
    """The path of `unix:/path`, or host and port of `http://host[:port]`. Raises UsageError for anything else."""
    if address.startswith("unix:/"):
        return address.removeprefix("unix:")
    match = re.fullmatch(r"http://(?:\[([0-9a-fA-F:.]+)\]|([^:/\[\]?#@]+))(?::(\d{1,5}))?/?", address)
    if match is None or not 0 < int(match[3] or 80) < 65_536:
        raise UsageError(f"{address!r} is not an engine's address", hint="http://HOST:PORT or unix:/PATH")
    return match[1] or match[2], int(match[3] or 80)


class Pool:
    """Open, idle connections to one launch of an engine, newest first."""

    def __init__(self, address: str) -> None:
        self._address = parse_address(address)
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
            if isinstance(self._address, str):
                _, connection = await loop.create_unix_connection(UpstreamConnection, self._address)
            else:
                _, connection = await loop.create_connection(UpstreamConnection, *self._address)
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
        "_aligned",
        "_between_chunks",
        "_content_type",
        "_done",
        "_early_heads",
        "_exchange",
        "_head_seen",
        "_is_plain",
        "_parser",
        "_pieces",
        "_retry_after",
        "_transport",
        "_whole",
        "answered",
        "idle_since",
        "usable",
        "used",
    )

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._content_type = self._retry_after = b""
        self._head_seen = self._done = self._between_chunks = self._aligned = self._is_plain = False
        self._whole: RepeatedHead | None = None
        self._early_heads = 0
        self.usable = True
        self.used = False
        self.answered = False
        self.idle_since = 0.0

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
        self._pieces = []
        self.used = True
        self._head_seen = self._done = self._between_chunks = self._aligned = False
        self._content_type = self._retry_after = b""
        self._early_heads = 0

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
        # The common read in the middle of a stream. The parser stands between two chunks: it need not see this one.
        if self._aligned and _is_one_event(data) and exchange.upstream_chunk(data):
            return
        if not self.answered and self._whole is not None and (body := self._whole.body(data)) is not None:
            self.answered = True
            exchange.upstream_whole(body)
            return
        first_read, self.answered = not self.answered, True
        in_head, aligned = not self._head_seen, self._aligned
        self._pieces = []
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._fail(f"the engine's answer is not HTTP: {error}")
            return
        if not self._head_seen or self._exchange is None:
            return
        if in_head and first_read and not self._early_heads:
            if self._done and self._is_plain:
                self._whole = RepeatedHead.of(data)
            data, aligned = data[data.find(b"\r\n\r\n") + 4 :], True
        # Between chunks, and not a byte of the next one's head: an event's end cannot be part of that.
        self._aligned = self._between_chunks and (data.endswith(b"\n\n\r\n") or (in_head and not data))
        exchange.upstream_read(data if aligned and self._aligned else b"", self._pieces, self._done)

    def _fail(self, cause: str) -> None:
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.upstream_lost(cause)

    # The parser's side.

    def on_message_begin(self) -> None:
        if self._done:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self._content_type = value
        elif lowered == b"retry-after":
            self._retry_after = value
        elif lowered == b"transfer-encoding":
            self._between_chunks = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            # RFC 9110, 15.2: a client reads on after heads that announce the answer, however many; we set an end.
            self._early_heads += 1
            self._content_type = self._retry_after = b""
            self._between_chunks = False
            if status == 101 or self._early_heads > WIRE.upstream_early_heads:
                raise ValueError(f"{self._early_heads} heads with a status below 200, the last {status}")
            return
        self._head_seen = True
        self._is_plain = status == 200 and self._content_type == b"application/json" and not self._between_chunks
        assert self._exchange is not None
        self._exchange.upstream_head(status, self._content_type, self._retry_after)

    def on_body(self, body: bytes) -> None:
        self._between_chunks = False
        self._pieces.append(body)

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        if not self._head_seen:
            return
        self._done = True
        # Only here does the parser know: once it has moved on, it has forgotten.
        self.usable = self._parser.should_keep_alive()
        self._is_plain = self._is_plain and self.usable


def _is_one_event(data: bytes) -> bool:
    """Whether a read that begins at a chunk is that one chunk, whole, and ends an event of JSON. A size written in any
    unusual way is left to the parser."""
    end = data.find(b"\r\n", 0, 9)
    if end < 1 or not data.endswith(b"}\n\n\r\n") or data[0] == 48 or not data[:end].isalnum():
        return False
    try:
        return int(data[:end], 16) == len(data) - end - 4
    except ValueError:
        return False
