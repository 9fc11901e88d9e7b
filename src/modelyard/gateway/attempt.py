"""One sending of a request to one replica: a seat, a connection, the lane that its answer takes.

It hears the engine and tells the request it was made for what came of it, once: answered, or failed. A request may make
several; what a client sees, and the record, are the request's."""

from __future__ import annotations

import asyncio
import re
from time import monotonic as now
from typing import Literal, Protocol

import msgspec

from modelyard.gateway.breaker import Event
from modelyard.gateway.dialects.dialect import Lane, NoWords, Speaker
from modelyard.gateway.estimate import prompt_tokens
from modelyard.gateway.lanes import BrokenStream, EngineErred, RawLane, Usage, WholeLane, usage_of
from modelyard.gateway.limits import WIRE
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.request import Request
from modelyard.gateway.seats import Seats
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.records.topology import Policy

# Of an engine's error: the record holds it.
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError | str | None = None
    message: str = ""


class Failure(msgspec.Struct, frozen=True):
    """What went wrong with an attempt. "unconnected": nothing was sent; "lost": no clean end; "erred": the engine says
    that it failed; "overloaded": it says that it has too much; "late": too long nothing came. `refusal` is what the
    client is told where nobody else answers, if not that there is no answer."""

    kind: Literal["unconnected", "lost", "erred", "overloaded", "late"]
    cause: str
    refusal: Refusal | None = None

    @property
    def event(self) -> Event:
        """What the replica's breaker learns of it."""
        match self.kind:
            case "unconnected" | "lost":
                return "lost"
            case "erred" | "late":
                return "erred"
            case "overloaded":
                return "answered"


class Reader(Protocol):
    """Who reads the answer. `paused` while it reads slower than we write."""

    @property
    def paused(self) -> bool: ...

    def write(self, data: bytes) -> None: ...


class Holder(Protocol):
    """The request that attempts are made for. `attempts` counts sendings, `bytes_out` what its client was sent;
    `endpoint` is the engine's, and `speaker` turns its answer into the client's dialect (None: it is that already)."""

    ended: bool
    stream: bool
    usage_asked: bool
    attempts: int
    bytes_out: int
    endpoint: str
    body: bytes
    trace_lines: bytes
    request: Request
    speaker: Speaker | None

    @property
    def client(self) -> Reader: ...

    def attempt_begins_answer(self, attempt: Attempt) -> bytes:
        """The first piece of a stream is there; the head that goes before it."""
        ...

    def attempt_streamed(self, attempt: Attempt, usage: Usage | None, last: bytes) -> None:
        """The stream is whole; `last` are its last bytes for the client."""
        ...

    def attempt_answered(self, attempt: Attempt, body: bytes, usage: Usage | None, verdict: str) -> None:
        """A plain answer is whole; `verdict` is what a check of it found wrong."""
        ...

    def attempt_refused(self, attempt: Attempt, refusal: Refusal, usage: Usage | None) -> None:
        """The engine said no to what was asked, or answered what cannot be told: then that has cost `usage`."""
        ...

    def attempt_failed(self, attempt: Attempt, failure: Failure) -> None: ...


class Attempt:
    """`seats` is a seat held for it by its holder, from before it begins until after its end. It is `over` once its
    connection has been given back or closed. `lane` is how its answer travels, where that is a stream; `relaying` once
    a piece of it has gone to the client: until then the engine's events are held back. `refused` where nobody listens
    at its address any more."""

    progressed = True
    relaying = over = refused = False
    quiet_since = 0.0
    sendings = 0
    error_status = 0
    retry_after = b""
    connection: UpstreamConnection | None = None
    lane: Lane | None = None
    _held = b""
    _whole: WholeLane | None = None
    _connecting: asyncio.Task[None] | None = None

    def __init__(self, holder: Holder, seats: Seats, began: float) -> None:
        self.holder, self.seats, self.began = holder, seats, began

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
        if holder.client.paused:
            connection.pause()
        lines = self.seats.pool.fields + holder.trace_lines
        connection.send(self, _request_bytes(holder.endpoint, holder.body, lines))

    async def _connect(self) -> None:
        try:
            connection = await self.seats.pool.connect()
        except (OSError, TimeoutError) as error:
            self.refused = isinstance(error, (ConnectionRefusedError, FileNotFoundError))
            self.fail("unconnected", f"the engine does not take connections ({type(error).__name__})")
            return
        if self.over:
            connection.abort()
        elif not connection.usable:
            self.fail("lost", "the engine closed the connection at once")
        else:
            self.send(connection)

    def fail(self, kind: Literal["unconnected", "lost", "erred", "late"], cause: str) -> None:
        """It is over, and did not answer."""
        if not self.over:
            self.abandon()
            self.holder.attempt_failed(self, Failure(kind, cause))

    def abandon(self) -> None:
        """Nobody waits for it: the engine learns of it by the closed connection."""
        self.over = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()

    def give_connection_back(self) -> None:
        self.over = True
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
        return self.lane.usage if self.lane is not None else None

    def events(self) -> int:
        """Pieces of a stream so far."""
        return self.lane.events if self.lane is not None else 0

    def check_progress(self, at: float, policy: Policy) -> None:
        """An engine that sends nothing for too long is given up. A client that reads slowly holds the engine back by
        our own doing: that is its deadline, not the engine's."""
        holder = self.holder
        if holder.stream and not self.relaying:
            self.seats.waits(at - self.began, prompt_tokens(len(holder.body)), at)
        if self.progressed or holder.client.paused:
            self.progressed = False
            self.quiet_since = at
        elif self.relaying and at - self.quiet_since > policy.stall_timeout_s:
            self._cut("late", f"nothing came for {policy.stall_timeout_s:g} s in the middle of an answer")
        elif not self.relaying and at - self.quiet_since > policy.first_byte_timeout_s:
            self.fail("late", f"no first byte within {policy.first_byte_timeout_s:g} s")

    # The engine's side.

    def upstream_head(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        holder = self.holder
        if status != 200:
            self.error_status, self.retry_after = status, retry_after
        elif holder.stream and content_type.startswith(b"text/event-stream"):
            usage_asked, chunked = holder.usage_asked, holder.request.chunked_allowed
            if holder.speaker is None:
                self.lane = RawLane(usage_asked, chunked)
            else:
                self.lane = holder.speaker.lane(usage_asked=usage_asked, chunked=chunked)
            return
        self._whole = WholeLane()

    def upstream_chunk(self, raw: bytes) -> bool:
        lane = self.lane
        if not self.relaying or lane is None or not lane.passes(raw):
            return False
        self.progressed = True
        holder = self.holder
        holder.bytes_out += len(raw)
        holder.client.write(raw)
        return True

    def upstream_read(self, raw: bytes, pieces: list[bytes], done: bool) -> None:
        lane, whole = self.lane, self._whole
        try:
            if lane is not None:
                out = lane.read(raw, pieces, done)
                if done:
                    self._streamed(lane, out)
                elif out:
                    self._relay(lane, out)
            elif whole is not None:
                self.progressed = True
                whole.read(pieces)
                if done:
                    self._answered(whole.body())
        except BrokenStream as broken:
            self._broken(broken)

    def upstream_whole(self, body: bytes) -> None:
        try:
            self._answered(body)
        except BrokenStream as broken:
            self._broken(broken)

    def upstream_lost(self, cause: str) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.used and not connection.answered and self.sendings < 2:
            # The keep-alive race: the engine closed an idle connection just as it was used again. Not one byte of an
            # answer came, so the request has not begun; a fresh connection settles it.
            self.send(None)
        else:
            self._cut("lost", cause)

    def _cut(self, kind: Literal["lost", "late"], cause: str) -> None:
        """The engine's bytes end here. Where it had said all of a stream, only framing is missing: the answer is whole,
        and after a [DONE] that the client has, nothing else would be true."""
        lane = self.lane
        try:
            rest = lane.read(b"", [], True) if lane is not None else None
        except BrokenStream:
            rest = None
        if lane is None or rest is None:
            self.fail(kind, cause)
            return
        self.abandon()
        self._tell_end(lane, rest)

    def _relay(self, lane: Lane, out: bytes) -> None:
        holder = self.holder
        if not self.relaying:
            if not lane.has_delta:
                self._hold(out)
                return
            out = self._begin_answer() + out
        self.progressed = True
        holder.bytes_out += len(out)
        holder.client.write(out)

    def _hold(self, out: bytes) -> None:
        self._held += out
        if len(self._held) > WIRE.upstream_event_bytes:
            raise BrokenStream("the engine sends events without a piece of an answer, on and on")

    def _begin_answer(self) -> bytes:
        self.relaying = True
        held, self._held = self._held, b""
        return self.holder.attempt_begins_answer(self) + held

    def _streamed(self, lane: Lane, out: bytes) -> None:
        self.give_connection_back()
        self._tell_end(lane, out)

    def _tell_end(self, lane: Lane, out: bytes) -> None:
        if not self.relaying:
            out = self._begin_answer() + out
        self.holder.attempt_streamed(self, lane.usage, out)

    def _answered(self, body: bytes) -> None:
        if self.error_status:
            self.give_connection_back()
            self._say_no(body)
            return
        speaker, verdict = self.holder.speaker, ""
        if self.holder.stream:
            raise BrokenStream("the engine answered a stream with a plain body")
        if speaker is None:
            usage = usage_of(body)
        else:
            try:
                body, usage, verdict = speaker.whole(body)
            except NoWords as found:
                self.give_connection_back()
                self.holder.attempt_refused(self, found.refusal, found.usage)
                return
        self.give_connection_back()
        self.holder.attempt_answered(self, body, usage, verdict)

    def _say_no(self, body: bytes) -> None:
        refusal = _refusal(self.error_status, self.retry_after, body)
        if self.error_status in (429, 503):
            self.holder.attempt_failed(self, Failure("overloaded", refusal.message, refusal))
        elif refusal.status >= 500 and self.error_status != 501:
            self.holder.attempt_failed(self, Failure("erred", refusal.message, refusal))
        else:
            self.holder.attempt_refused(self, refusal, None)

    def _broken(self, broken: BrokenStream) -> None:
        self.fail("erred" if isinstance(broken, EngineErred) else "lost", str(broken))


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
    code = "" if error.code is None else str(error.code)
    return Refusal(
        status,
        error.message[:2000] or "the engine refused the request",
        code=code if _CODE.fullmatch(code) else "engine_refused",
        param=error.param[:256] if error.param is not None else None,
    )


def _request_bytes(path: str, body: bytes, lines: bytes) -> bytes:
    """`lines` are header lines beside those that every request has."""
    return b"POST %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        lines,
        len(body),
        body,
    )
