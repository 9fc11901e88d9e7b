"""Connections of clients: strict about what is read, bounded in how much and for how long.

What can be refused from the head alone (route, key, size) is refused before a byte of the body is read."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from time import monotonic as now
from typing import cast

import httptools

from modelyard.gateway.connections import Connections
from modelyard.gateway.exchange import Exchange
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.request import HeadMemo, Request
from modelyard.gateway.request_head import body_too_large, check_head, head_too_large, take_field
from modelyard.gateway.turns import LARGE_BODY_BYTES
from modelyard.gateway.worker import Worker

_SMALL_PART_BYTES = 256
_MERGED_PART_BYTES = 4096
# In chunks of one byte each of these comes to a call of ours for every 6 bytes: 14 ms for all of them.
_FED_AT_ONCE_BYTES = 64 * 1024
# struct linger: on, with no time to linger.
_RESET = struct.pack("ii", 1, 0)


class ClientConnection(asyncio.Protocol):
    """Parses requests and runs one exchange at a time; `deadline` is what the sweep holds the client to."""

    __slots__ = (
        "_body_until",
        "_connections",
        "_counted",
        "_deaf",
        "_head_in",
        "_held_back",
        "_memo",
        "_parser",
        "_parts",
        "_serving",
        "_thrown_away",
        "_transport",
        "_unfed",
        "_waiting",
        "_wire",
        "_worker",
        "deadline",
        "exchange",
        "fields",
        "paused",
        "receiving",
    )

    def __init__(self, worker: Worker, connections: Connections[ClientConnection]) -> None:
        self._worker = worker
        self._wire = worker.wire
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self.exchange: Exchange | None = None
        self.receiving: Request | None = None
        self.fields = 0
        self.paused = False
        # Deaf: what arrives is thrown away, because what came before it cannot be a request.
        self._deaf = False
        self._thrown_away = 0
        self._serving = False
        self._parts: list[bytes] = []
        # What has come and waits for the parser: others are served in between. Meanwhile nothing more is read.
        self._unfed = b""
        self._held_back = False
        self._head_in = b""
        self._memo: HeadMemo | None = None
        # When the body must be whole at the latest; what had come of it, or was still to be read, at the last look.
        self._body_until = 0.0
        self._counted = 0
        self.deadline = now() + self._wire.head_timeout_s

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's: the promise is the interface.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=self._wire.write_buffer_bytes)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._connections.add(self, transport.get_extra_info("peername")):
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._waiting.clear()
        self._parts.clear()
        self._unfed = b""
        self.receiving = None
        # It holds us and we hold it: what hangs on that waits for the collector, which is made to come rarely.
        del self._parser
        if self.exchange is not None:
            self.exchange.client_gone()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            # Thrown away, but not without end: the answer has had its time to arrive.
            self._thrown_away += len(data)
            if self._thrown_away > self._wire.body_bytes:
                self.abort()
            return
        if self._unfed:
            self._unfed += data
            return
        request = self.receiving
        self._head_in = b""
        if request is None and self.exchange is None and not self._waiting and not self.paused:
            if self._memo is not None and not self._worker.pressure.level:
                again = self._memo.repeated(data, self._worker.new_request)
                if again is not None:
                    self._serve(again)
                    return
            self._head_in = data
        if len(data) > _FED_AT_ONCE_BYTES and (request is None or request.is_chunked):
            self._unfed = data
            self._feed_rest()
        else:
            self._feed(data)

    def _feed_rest(self) -> None:
        """Give the parser a piece of what waits for it; nothing more is read until it has all."""
        transport = self._transport
        if transport is None or self._deaf:
            self._unfed = b""
            return
        piece, self._unfed = self._unfed[:_FED_AT_ONCE_BYTES], self._unfed[_FED_AT_ONCE_BYTES:]
        if self._unfed:
            self._hold_reading(transport)
            asyncio.get_running_loop().call_soon(self._feed_rest)
        self._feed(piece)
        if not transport.is_closing():
            self._read_on(transport)

    def _hold_reading(self, transport: asyncio.Transport) -> None:
        self._held_back = True
        transport.pause_reading()

    def _read_on(self, transport: asyncio.Transport) -> None:
        """Unless something that has come already still waits."""
        if self._held_back and not self._unfed and not self._waiting:
            self._held_back = False
            transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        request = self.receiving
        before = request.received if request is not None else 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse_and_close(Refusal(400, "no upgrade is served here", code="bad_request"))
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refusal):
                raise
            self._refuse_and_close(error.__context__)
        except httptools.HttpParserError:
            self._refuse_and_close(Refusal(400, "the request is not valid HTTP/1.1", code="bad_request"))
        else:
            if request is not None and request is self.receiving and request.received - before != len(data):
                self._check_unproductive(request, len(data), request.received - before)

    def _check_unproductive(self, request: Request, size: int, body: int) -> None:
        """Reads that brought no body: a head, a trailer or chunk sizes that go on and on. The parser holds a field
        until it ends, so its size is not seen otherwise. Or that brought little of it, in chunks of next to nothing."""
        if not body:
            request.unproductive += size
        request.framing += size - body
        if request.unproductive > self._wire.head_bytes or request.framing > self._wire.framing_bytes:
            self._refuse_and_close(head_too_large())

    def pause_writing(self) -> None:
        self.paused = True
        self._expect_reading()
        if self.exchange is not None:
            self.exchange.client_paused()

    def resume_writing(self) -> None:
        self.paused = False
        if self.exchange is not None:
            self.deadline = float("inf")
            self.exchange.client_resumed()
        elif self._transport is not None and not self._transport.is_closing():
            self._rest()

    # The parser's side.

    def on_message_begin(self) -> None:
        self.receiving = self._worker.new_request()
        self._parts.clear()
        self.fields = 0
        if self.exchange is None and not self.paused:
            self.deadline = now() + self._wire.head_timeout_s

    def on_url(self, url: bytes) -> None:
        request = self.receiving
        assert request is not None
        request.target += url
        request.head_bytes += len(url)
        if request.head_bytes > self._wire.head_bytes:
            raise head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.receiving
        assert request is not None
        request.head_bytes += len(name) + len(value) + 4
        self.fields += 1
        if request.head_bytes > self._wire.head_bytes or self.fields > self._wire.header_fields:
            raise head_too_large()
        if request.method:
            # A trailer: what was decided by the head is not changed by what comes behind the body.
            return
        take_field(request, name, value)

    def on_headers_complete(self) -> None:
        request = self.receiving
        assert request is not None
        request.method = self._parser.get_method()
        version = self._parser.get_http_version()
        request.chunked_allowed = version == "1.1"
        request.keep_alive = self._parser.should_keep_alive() and version == "1.1"
        answering = self._busy()
        try:
            check_head(request, version, self._worker, upgrades=self._parser.should_upgrade())
        except Refusal as refusal:
            # A body that nobody wants is not read: the connection ends with the refusal.
            refusal.close = refusal.close or request.has_body
            request.refusal = refusal
            if refusal.close and not answering:
                raise
            return
        if not answering:
            if request.has_body:
                self._expect_body(request)
            if request.expects and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self._head_in and request.route.kind == "inference":
                self._memo = HeadMemo.of(self._head_in, request, self._worker.keyring)

    def on_body(self, body: bytes) -> None:
        request = self.receiving
        assert request is not None
        request.received += len(body)
        if request.received > self._wire.body_bytes:
            raise body_too_large(self._wire)
        if request.refusal is not None:
            return
        parts = self._parts
        if len(body) < _SMALL_PART_BYTES and parts and len(parts[-1]) < _MERGED_PART_BYTES:
            # An object for each of a million tiny pieces would weigh forty times what they hold.
            parts[-1] += body
        else:
            parts.append(body)

    def on_message_complete(self) -> None:
        request, self.receiving = self.receiving, None
        assert request is not None
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._head_in = b""
        if self._busy():
            # Pipelined: answered in turn. Nothing more is read until then, so one read bounds what can wait.
            self._waiting.append(request)
            if self._transport is not None:
                self._hold_reading(self._transport)
            return
        self._serve(request)

    def _busy(self) -> bool:
        """Whether a request that has come must wait: for those before it, or for the client to read its answers."""
        return self.exchange is not None or self.paused or bool(self._waiting)

    # The exchange's side.

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def exchange_ended(self, exchange: Exchange) -> None:
        """The exchange's record stands in the journal, its last bytes are written."""
        self.exchange = None
        self._next(exchange.request)

    def holds_an_end(self) -> bool:
        """Whether the end of an answer waits here for its client to read."""
        transport = self._transport
        return self.exchange is None and transport is not None and transport.get_write_buffer_size() > 0

    def close(self) -> None:
        """At once when idle; otherwise after the current answer."""
        if self.exchange is not None:
            self.exchange.request.keep_alive = False
        elif self._transport is not None and self.receiving is None:
            self._transport.close()

    def stop(self) -> None:
        """The gateway ends now: say so where an answer is under way, then close."""
        if self.exchange is not None:
            self.exchange.gateway_stops()
        if self._transport is not None:
            self._transport.close()

    def let_idle_go(self, by: float) -> None:
        """An idle connection ends then unless a request comes."""
        if self.exchange is None and self.receiving is None and not self._waiting and not self.paused:
            self.deadline = min(self.deadline, by)

    def _turn_away(self) -> None:
        """There is no place for it. Where all places are taken a few are told so, before anything is read."""
        if self._transport is None or not self._connections.is_full:
            self.abort()
            return
        refusal = unavailable("the gateway has too many connections", retry_after_s=1, code="overloaded")
        self._transport.write(refusal.response("-", keep_alive=False))
        self._linger(self._transport)

    def abort(self) -> None:
        """Reset the connection. Closing alone would leave what was not read with the kernel, for a client that takes a
        byte now and then, for as long as it likes."""
        transport = self._transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def expire(self) -> None:
        """The sweep found the deadline passed: who kept up has another one, a slow sender is told so, anyone else is
        cut off."""
        transport, request = self._transport, self.receiving
        if transport is None:
            return
        if (self.paused or transport.is_closing()) and self._reads_on(transport):
            return
        if transport.is_closing() or self._busy() or request is None:
            self.abort()
        elif not self._sends_on(request):
            self._refuse_and_close(Refusal(408, "the request took too long to arrive", code="timeout", close=True))

    def _expect_body(self, request: Request) -> None:
        at = now()
        self._body_until = at + self._wire.body_timeout_s
        self._counted = request.received
        self.deadline = min(at + self._wire.rate_window_s, self._body_until)

    def _sends_on(self, request: Request) -> bool:
        """Whether enough of the body has come since the last look, and there is time for the rest."""
        wire, at = self._wire, now()
        if not request.method or at >= self._body_until:
            return False
        if request.received - self._counted < wire.least_bytes_per_s * wire.rate_window_s:
            return False
        self._counted = request.received
        self.deadline = min(at + wire.rate_window_s, self._body_until)
        return True

    def _expect_reading(self) -> None:
        self.deadline = now() + self._wire.rate_window_s
        self._counted = self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _reads_on(self, transport: asyncio.Transport) -> bool:
        """Whether the client has taken enough of its answers since the last look."""
        before = self._counted
        least = self._wire.least_bytes_per_s * self._wire.rate_window_s
        if before - transport.get_write_buffer_size() < least:
            return False
        self._expect_reading()
        return True

    def _serve(self, request: Request) -> None:
        if not self.paused:
            self.deadline = float("inf")
        if self._worker.draining or self._worker.pressure.level:
            request.keep_alive = False
        if request.refusal is not None:
            request.keep_alive = request.keep_alive and not request.refusal.close
            response = request.refusal.response(request.id, keep_alive=request.keep_alive, shape=request.route.shape)
            if request.method == b"HEAD":
                response = response[: response.index(b"\r\n\r\n") + 4]
            self._answer(request, request.refusal.status, response)
        elif request.route.kind == "inference":
            self.exchange = exchange = Exchange(self._worker, self, request)
            if len(request.body) < LARGE_BODY_BYTES:
                exchange.begin()
            else:
                self._worker.turns.take(exchange.begin_by_steps())
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
        if not request.keep_alive:
            # Also for the rest of the answer there is a deadline: the client need not read it.
            self._expect_reading()
            if self._waiting or self.receiving is not None:
                self._linger(transport)
            else:
                transport.close()
        elif not self._waiting and self.receiving is None and not self.paused and not self._deaf:
            self.deadline = now() + self._wire.idle_timeout_s
            if self._held_back:
                self._read_on(transport)
        elif not self._serving:
            self._rest()

    def _rest(self) -> None:
        """Nothing is being answered: serve those that wait, one after the other, then wait for the next."""
        self._serving = True
        while self._waiting and self.exchange is None and not self.paused and not self._deaf:
            self._serve(self._waiting.popleft())
        self._serving = False
        transport = self._transport
        if transport is None or transport.is_closing() or self.exchange is not None or self.paused:
            return
        if self._deaf:
            self._linger(transport)
            return
        self._read_on(transport)
        if self.receiving is not None:
            self._expect_body(self.receiving)
        else:
            self.deadline = now() + self._wire.idle_timeout_s

    def _refuse_and_close(self, refusal: Refusal) -> None:
        """For what cannot be a request: nothing after it is read. Answers that are under way come to their end."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._deaf:
            return
        if self._busy():
            self._deaf = True
            if self.exchange is not None:
                self.exchange.request.keep_alive = False
            return
        request = self.receiving
        shape = request.route.shape if request is not None else "openai"
        response = refusal.response(request.id if request is not None else "-", keep_alive=False, shape=shape)
        if request is not None and request.admitted:
            self._worker.record_answer(request, refusal.status, len(response))
        transport.write(response)
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Closing on unread bytes resets the connection and may take our answer with it: read on for a moment."""
        self._deaf = True
        self.receiving = None
        self._waiting.clear()
        if not transport.can_write_eof():
            transport.close()
            return
        self.deadline = now() + self._wire.linger_s
        transport.resume_reading()
        transport.write_eof()
