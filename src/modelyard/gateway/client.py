"""Connections of clients: strict about what is read, bounded in how much and for how long.

What can be refused from the head alone (route, key, size) is refused before a byte of the body is read."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from time import monotonic as now
from typing import cast

import httptools

from modelyard.gateway.exchange import Exchange
from modelyard.gateway.limits import WIRE
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.request import HeadMemo, Request
from modelyard.gateway.routes import find
from modelyard.gateway.worker import Worker


class Connections:
    """The open connections of a worker; `quiet` is set while there are none."""

    def __init__(self) -> None:
        self.open: set[ClientConnection] = set()
        self.quiet = asyncio.Event()
        self.quiet.set()

    def add(self, connection: ClientConnection) -> None:
        self.open.add(connection)
        self.quiet.clear()
        if len(self.open) > WIRE.connections:
            connection.abort()

    def discard(self, connection: ClientConnection) -> None:
        self.open.discard(connection)
        if not self.open:
            self.quiet.set()


class ClientConnection(asyncio.Protocol):
    """Parses requests and runs one exchange at a time; `deadline` is what the sweep holds the client to."""

    __slots__ = (
        "_connections",
        "_head_in",
        "_lingering",
        "_memo",
        "_parser",
        "_parts",
        "_transport",
        "_waiting",
        "_worker",
        "deadline",
        "exchange",
        "fields",
        "paused",
        "receiving",
    )

    def __init__(self, worker: Worker, connections: Connections) -> None:
        self._worker = worker
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self.exchange: Exchange | None = None
        self.receiving: Request | None = None
        self.fields = 0
        self.paused = False
        self._lingering = False
        self._parts: list[bytes] = []
        self._head_in = b""
        self._memo: HeadMemo | None = None
        self.deadline = now() + WIRE.head_timeout_s

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's: the promise is the interface.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WIRE.write_buffer_bytes)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._waiting.clear()
        if self.exchange is not None:
            self.exchange.client_gone()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        self._head_in = b""
        if self.receiving is None and self.exchange is None and not self._waiting:
            request = self._memo.repeated(data, self._worker.new_request) if self._memo is not None else None
            if request is not None:
                self._serve(request)
                return
            self._head_in = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse_and_close(Refusal(400, "no upgrade is served here", code="bad_request"))
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            refusal = error.__context__ if isinstance(error.__context__, Refusal) else None
            self._refuse_and_close(refusal or Refusal(400, "the request is not valid HTTP/1.1", code="bad_request"))

    def pause_writing(self) -> None:
        self.paused = True
        self.deadline = now() + WIRE.write_stall_timeout_s
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        self.paused = False
        self.deadline = float("inf") if self.exchange is not None else now() + WIRE.idle_timeout_s
        if self.exchange is not None:
            self.exchange.client_resumed()

    # The parser's side.

    def on_message_begin(self) -> None:
        self.receiving = self._worker.new_request()
        self._parts.clear()
        self.fields = 0
        if self.exchange is None:
            self.deadline = now() + WIRE.head_timeout_s

    def on_url(self, url: bytes) -> None:
        request = self.receiving
        assert request is not None
        request.target += url
        request.head_bytes += len(url)
        if request.head_bytes > WIRE.head_bytes:
            raise Refusal(431, "the request head is too large", code="head_too_large", close=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.receiving
        assert request is not None
        request.head_bytes += len(name) + len(value) + 4
        self.fields += 1
        if request.head_bytes > WIRE.head_bytes or self.fields > WIRE.header_fields:
            raise Refusal(431, "the request head is too large", code="head_too_large", close=True)
        lowered = name.lower()
        if lowered == b"authorization":
            request.secret = value.decode("latin-1")
        elif lowered == b"host":
            request.hosts += 1
        elif lowered == b"content-length":
            request.content_length = int(value)
            request.has_body = request.content_length > 0
        elif lowered == b"transfer-encoding":
            request.has_body = True
        elif lowered == b"content-encoding":
            request.coded = value.lower() != b"identity"
        elif lowered == b"expect":
            request.expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        request = self.receiving
        assert request is not None
        request.method = self._parser.get_method()
        version = self._parser.get_http_version()
        request.chunked_allowed = version == "1.1"
        request.keep_alive = self._parser.should_keep_alive() and version == "1.1"
        answering = self.exchange is not None or bool(self._waiting)
        try:
            self._check_head(request, version)
        except Refusal as refusal:
            # A body that nobody wants is not read: the connection ends with the refusal.
            refusal.close = refusal.close or request.has_body
            request.refusal = refusal
            if refusal.close and not answering:
                raise
            return
        if not answering:
            self.deadline = now() + WIRE.body_timeout_s
            if request.expects and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self._head_in and request.route.kind == "inference":
                self._memo = HeadMemo.of(self._head_in, request, self._worker.keyring)

    def _check_head(self, request: Request, version: str) -> None:
        if version not in ("1.0", "1.1"):
            raise Refusal(505, "only HTTP/1.1 is served here", code="bad_request", close=True)
        if request.hosts != 1 and version == "1.1":
            raise Refusal(400, "exactly one Host is needed", code="bad_request", close=True)
        route = find(request.method, request.target)
        if isinstance(route, int):
            text = "there is nothing here" if route == 404 else "this method is not served here"
            raise Refusal(route, text, code="not_found" if route == 404 else "method_not_allowed")
        request.route = route
        if not route.open_to_all:
            request.key = self._worker.authenticate(request.secret)
            request.admitted = True
        if request.content_length > WIRE.body_bytes:
            raise _too_large()
        if request.coded:
            raise Refusal(415, "send the body without content-encoding", code="bad_request", close=True)

    def on_body(self, body: bytes) -> None:
        request = self.receiving
        assert request is not None
        request.received += len(body)
        if request.received > WIRE.body_bytes:
            raise _too_large()
        if request.refusal is None:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        request, self.receiving = self.receiving, None
        assert request is not None
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self.exchange is not None or self._waiting:
            # Pipelined: answered in turn. Nothing more is read until then, so one read bounds what can wait.
            self._waiting.append(request)
            if self._transport is not None:
                self._transport.pause_reading()
            return
        self._serve(request)

    # The exchange's side.

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def exchange_ended(self, exchange: Exchange, last: bytes) -> None:
        """The exchange's record stands in the journal; these are its last bytes."""
        self.exchange = None
        if last:
            self.write(last)
        self._next(exchange.request)

    def close(self) -> None:
        """At once when idle; otherwise after the current answer."""
        if self.exchange is not None:
            self.exchange.request.keep_alive = False
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def expire(self) -> None:
        """The sweep found the deadline passed: a slow sender is told so, anyone else is cut off."""
        if self.exchange is not None or self.receiving is None:
            self.abort()
        else:
            self._refuse_and_close(Refusal(408, "the request took too long to arrive", code="timeout", close=True))

    def _serve(self, request: Request) -> None:
        self.deadline = float("inf")
        if request.refusal is not None:
            request.keep_alive = request.keep_alive and not request.refusal.close
            response = request.refusal.response(request.id, keep_alive=request.keep_alive)
            self._answer(request, request.refusal.status, response)
        elif request.route.kind == "inference":
            self.exchange = Exchange(self._worker, self, request)
            self.exchange.begin()
        else:
            self._answer(request, *self._worker.answer(request))

    def _answer(self, request: Request, status: int, response: bytes) -> None:
        if request.admitted:
            self._worker.record_answer(request, status, len(response))
        self.write(response)
        self._next(request)

    def _next(self, request: Request) -> None:
        """After an answer: the next request that waits, or idle, or the end of the connection."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not request.keep_alive or self._worker.draining:
            transport.close()
            return
        if not self.paused:
            self.deadline = now() + WIRE.idle_timeout_s
        if self._waiting:
            following = self._waiting.popleft()
            if not self._waiting:
                transport.resume_reading()
            self._serve(following)

    def _refuse_and_close(self, refusal: Refusal) -> None:
        """For what cannot be a request: answered only where no other answer is under way."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._lingering:
            return
        if self.exchange is not None or self._waiting:
            transport.abort()
            return
        request = self.receiving
        response = refusal.response(request.id if request is not None else "-", keep_alive=False)
        if request is not None and request.admitted:
            self._worker.record_answer(request, refusal.status, len(response))
        transport.write(response)
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Closing on unread bytes resets the connection and may take our answer with it: read on for a moment."""
        if not transport.can_write_eof():
            transport.close()
            return
        self._lingering = True
        self.receiving = None
        self.deadline = now() + WIRE.linger_s
        transport.write_eof()


def _too_large() -> Refusal:
    return Refusal(413, f"the body is larger than {WIRE.body_bytes} bytes", code="body_too_large", close=True)
