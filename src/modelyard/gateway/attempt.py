"""One sending of a request to one replica: a seat, a connection, the lane that its answer takes.

It hears the engine and tells the request it was made for what came of it, once: answered, or failed. A request may make
several; what a client sees, and the record, are the request's."""

from __future__ import annotations

import asyncio
from time import monotonic as now
from typing import Protocol

import msgspec

from modelyard.gateway.admission import Seats
from modelyard.gateway.lanes import BrokenStream, RawLane, Usage, WholeLane, usage_of
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.request import Request
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.records.topology import Policy


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError | str | None = None
    message: str = ""


class Reader(Protocol):
    """Who reads the answer. `paused` while it reads slower than we write."""

    paused: bool

    def write(self, data: bytes) -> None: ...


class Holder(Protocol):
    """The request that attempts are made for. `attempts` counts sendings, `bytes_out` what its client was sent."""

    ended: bool
    stream: bool
    usage_asked: bool
    attempts: int
    bytes_out: int
    body: bytes
    request: Request

    @property
    def client(self) -> Reader: ...

    def attempt_begins_answer(self) -> bytes:
        """The first bytes of a stream are there; the head that goes before them."""
        ...

    def attempt_streamed(self, attempt: Attempt, usage: Usage | None, last: bytes) -> None:
        """The stream is whole; `last` are its last bytes for the client."""
        ...

    def attempt_answered(self, attempt: Attempt, body: bytes, usage: Usage | None) -> None:
        """A plain answer is whole."""
        ...

    def attempt_refused(self, attempt: Attempt, refusal: Refusal) -> None:
        """The engine answered, and said no."""
        ...

    def attempt_unconnected(self, attempt: Attempt, cause: str) -> None:
        """The engine takes no connection: nothing was sent."""
        ...

    def attempt_failed(self, attempt: Attempt, cause: str) -> None:
        """No clean end."""
        ...


class Attempt:
    """`seats` is a seat held for it by its holder, from before it begins until after its end. `relaying` once bytes of
    its answer have gone to the client."""

    progressed = True
    relaying = False
    quiet_since = 0.0
    sendings = 0
    error_status = 0
    retry_after = b""
    connection: UpstreamConnection | None = None
    _lane: RawLane | WholeLane | None = None
    _connecting: asyncio.Task[None] | None = None

    def __init__(self, holder: Holder, seats: Seats) -> None:
        self.holder, self.seats = holder, seats

    # The holder's side.

    def send(self, connection: UpstreamConnection | None) -> None:
        """On this connection, or on a fresh one."""
        if connection is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        holder = self.holder
        self.connection = connection
        self.sendings += 1
        holder.attempts += 1
        self.progressed = True
        if holder.client.paused:
            connection.pause()
        connection.send(self, _request_bytes(holder.request.route.endpoint, holder.body))

    async def _connect(self) -> None:
        holder = self.holder
        try:
            connection = await self.seats.pool.connect()
        except (OSError, TimeoutError) as error:
            holder.attempt_unconnected(self, f"the engine does not take connections ({type(error).__name__})")
            return
        if holder.ended:
            connection.abort()
        elif not connection.usable:
            holder.attempt_failed(self, "the engine closed the connection at once")
        else:
            self.send(connection)

    def abandon(self) -> None:
        """Nobody waits for it: the engine learns of it by the closed connection."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()

    def give_connection_back(self) -> None:
        connection, self.connection = self.connection, None
        assert connection is not None
        connection.release()
        if self.holder.client.paused:
            connection.resume()
        self.seats.pool.give(connection, now())

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def usage(self) -> Usage | None:
        """As far as the engine has stated it."""
        return self._lane.usage if isinstance(self._lane, RawLane) else None

    def events(self) -> int:
        """Pieces of a stream so far."""
        return self._lane.events if isinstance(self._lane, RawLane) else 0

    def check_progress(self, at: float, policy: Policy) -> None:
        """An engine that sends nothing for too long is given up. A client that reads slowly holds the engine back by
        our own doing: that is its deadline, not the engine's."""
        if self.progressed or self.holder.client.paused:
            self.progressed = False
            self.quiet_since = at
        elif self.relaying and at - self.quiet_since > policy.stall_timeout_s:
            self._fail(f"nothing came for {policy.stall_timeout_s:g} s in the middle of an answer")
        elif not self.relaying and at - self.quiet_since > policy.first_byte_timeout_s:
            self._fail(f"no first byte within {policy.first_byte_timeout_s:g} s")

    # The engine's side.

    def upstream_head(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        if status != 200:
            self.error_status, self.retry_after = status, retry_after
        elif self.holder.stream and content_type.startswith(b"text/event-stream"):
            self._lane = RawLane(self.holder.usage_asked, self.holder.request.chunked_allowed)
            return
        self._lane = WholeLane()

    def upstream_chunk(self, raw: bytes) -> bool:
        lane = self._lane
        if not self.relaying or type(lane) is not RawLane or not lane.passes(raw):
            return False
        self.progressed = True
        holder = self.holder
        holder.bytes_out += len(raw)
        holder.client.write(raw)
        return True

    def upstream_read(self, raw: bytes, pieces: list[bytes], done: bool) -> None:
        lane = self._lane
        self.progressed = True
        try:
            if type(lane) is RawLane:
                out = lane.read(raw, pieces, done)
                if done:
                    self._streamed(lane, out)
                elif out:
                    self._relay(out)
            elif type(lane) is WholeLane:
                lane.read(pieces)
                if done:
                    self._answered(lane.body())
        except BrokenStream as broken:
            self._fail(str(broken))

    def upstream_whole(self, body: bytes) -> None:
        try:
            self._answered(body)
        except BrokenStream as broken:
            self._fail(str(broken))

    def upstream_lost(self, cause: str) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.used and not connection.answered and self.sendings < 2:
            # The keep-alive race: the engine closed an idle connection just as it was used again. Not one byte of an
            # answer came, so the request has not begun; a fresh connection settles it.
            self.send(None)
        else:
            self._fail(cause)

    def _relay(self, out: bytes) -> None:
        if not self.relaying:
            out = self._begin_answer() + out
        holder = self.holder
        holder.bytes_out += len(out)
        holder.client.write(out)

    def _begin_answer(self) -> bytes:
        self.relaying = True
        return self.holder.attempt_begins_answer()

    def _streamed(self, lane: RawLane, out: bytes) -> None:
        if not self.relaying:
            out = self._begin_answer() + out
        self.give_connection_back()
        self.holder.attempt_streamed(self, lane.usage, out)

    def _answered(self, body: bytes) -> None:
        if self.error_status:
            self.give_connection_back()
            self.holder.attempt_refused(self, _refusal(self.error_status, self.retry_after, body))
            return
        usage = usage_of(body)
        if self.holder.stream:
            raise BrokenStream("the engine answered a stream with a plain body")
        self.give_connection_back()
        self.holder.attempt_answered(self, body, usage)

    def _fail(self, cause: str) -> None:
        self.abandon()
        self.holder.attempt_failed(self, cause)


def _refusal(status: int, retry_after: bytes, body: bytes) -> Refusal:
    """What an engine refuses is the client's to know; what it fails at is only named as a failure."""
    if status in (429, 503):
        wait_s = int(retry_after) if retry_after.isdigit() else 2
        return Refusal(503, "the engine is overloaded", code="overloaded", retry_after_s=wait_s)
    if status not in (400, 404, 413, 415, 422, 501):
        return Refusal(502, f"the engine failed with status {status}", code="engine_error")
    try:
        parsed = msgspec.json.decode(body, type=_EngineErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refusal(status, "the engine refused the request", code="engine_refused")
    error = parsed.error if isinstance(parsed.error, _EngineError) else _EngineError(parsed.error or parsed.message)
    code = str(error.code) if error.code is not None else "engine_refused"
    return Refusal(status, error.message[:2000] or "the engine refused the request", code=code, param=error.param)


def _request_bytes(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )
