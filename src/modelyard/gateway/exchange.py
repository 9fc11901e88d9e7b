"""The life of one request, from a checked body to its record in the journal.

No task, no await: the exchange is called by the client's connection, by admission and by the engine's connection, and
ends exactly once, in `_end`. Whatever happens first decides: a later event finds `ended` set and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic as now
from typing import Protocol

import msgspec

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Result, Seats
from modelyard.gateway.fields import parse, upstream_body, usage_asked
from modelyard.gateway.heads import json_response, stream_head
from modelyard.gateway.lanes import LAST_CHUNK, BrokenStream, RawLane, Usage, WholeLane, chunk, usage_of
from modelyard.gateway.refusals import Refusal, error_event, unavailable, unknown_model
from modelyard.gateway.request import Request
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.gateway.worker import Worker
from modelyard.records.decision import Decision
from modelyard.records.journal import Outcome, RequestRecord, UsageSource

_NO_USAGE = Usage()


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError | str | None = None
    message: str = ""


class Client(Protocol):
    """Who asked. `paused` while it reads slower than we write."""

    paused: bool

    def write(self, data: bytes) -> None: ...

    def exchange_ended(self, exchange: Exchange) -> None:
        """The exchange's record stands in the journal, its last bytes are written."""
        ...


class Exchange:
    """One request to one deployment. `seats` is held from `seated` until `_end`."""

    ended = stream = usage_asked = False
    progressed = True
    attempts = 0
    bytes_out = 0
    seated_at = first_byte_at = quiet_since = 0.0
    error_status = 0
    retry_after = b""
    body = b""
    warning = b""
    admission: Admission | None = None
    asking = Asking()
    seats: Seats | None = None
    ticket: Queued | None = None
    decision: Decision | None = None
    connection: UpstreamConnection | None = None
    _lane: RawLane | WholeLane | None = None
    _connecting: asyncio.Task[None] | None = None

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        self.worker, self.client, self.request = worker, client, request

    def begin(self) -> None:
        """Check what is asked and ask for a seat; every refusal is answered here."""
        if self.ended:
            return
        request, worker = self.request, self.worker
        endpoint = request.route.endpoint
        try:
            parsed = parse(request.body, endpoint)
            call = parsed.call
            self.stream = call.stream is True
            self.usage_asked = self.stream and usage_asked(call)
            admission = worker.admissions.get(call.model)
            if admission is None:
                raise unknown_model(call.model)
            self.admission = admission
            worker.keyring.authorize(request.key, call.model, endpoint)
            self.body = upstream_body(parsed, admission.deployment)
            if parsed.stripped:
                self.warning = _warning(parsed.stripped)
            self.asking = Asking(key_id=request.key.id)
            self.ticket = admission.enter(self, self.asking, now())
        except Refusal as refusal:
            self._refuse(refusal)

    # Admission's side.

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.seats, self.decision = seats, decision
        self.ticket = None
        self.seated_at = now()
        self._dispatch(seats.pool.take(self.seated_at))

    def not_seated(self, reason: str) -> None:
        assert self.admission is not None
        self.ticket = None
        deployment = self.admission.deployment
        self._refuse(unavailable(f"{deployment.name!r}: {reason}", retry_after_s=deployment.policy.retry_after_s))

    # The engine's side.

    def _dispatch(self, connection: UpstreamConnection | None) -> None:
        if connection is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        self.connection = connection
        self.attempts += 1
        self.progressed = True
        if self.client.paused:
            connection.pause()
        connection.send(self, _request_bytes(self.request.route.endpoint, self.body))

    async def _connect(self) -> None:
        seats, admission = self.seats, self.admission
        assert seats is not None and admission is not None
        try:
            connection = await seats.pool.connect()
        except (OSError, TimeoutError) as error:
            if not self.ended and admission.refused(seats):
                self._move(seats, admission)
                return
            self._unavailable(f"the engine does not take connections ({type(error).__name__})")
            return
        if self.ended:
            connection.abort()
        elif not connection.usable:
            self._unavailable("the engine closed the connection at once")
        else:
            self._dispatch(connection)

    def _move(self, refused: Seats, admission: Admission) -> None:
        """Give the seat back and ask for another one. Nothing was sent yet, so nothing can happen twice."""
        self.seats = None
        admission.leave(refused, WITHDRAWN)
        try:
            self.ticket = admission.enter(self, self.asking, now())
        except Refusal as refusal:
            self._refuse(refusal)

    def upstream_head(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        if status != 200:
            self.error_status, self.retry_after = status, retry_after
        elif self.stream and content_type.startswith(b"text/event-stream"):
            self._lane = RawLane(self.usage_asked, self.request.chunked_allowed)
            return
        self._lane = WholeLane()

    def upstream_chunk(self, raw: bytes) -> bool:
        lane = self._lane
        if not self.first_byte_at or type(lane) is not RawLane or not lane.passes(raw):
            return False
        self.progressed = True
        self.bytes_out += len(raw)
        self.client.write(raw)
        return True

    def upstream_read(self, raw: bytes, pieces: list[bytes], done: bool) -> None:
        lane = self._lane
        self.progressed = True
        try:
            if type(lane) is RawLane:
                out = lane.read(raw, pieces, done)
                if done:
                    self._stream_done(lane, out)
                elif out:
                    self._relay(out)
            elif type(lane) is WholeLane:
                lane.read(pieces)
                if done:
                    self._answer_done(lane.body())
        except BrokenStream as broken:
            self._upstream_broken(str(broken))

    def upstream_whole(self, body: bytes) -> None:
        try:
            self._answer_done(body)
        except BrokenStream as broken:
            self._upstream_broken(str(broken))

    def upstream_lost(self, cause: str) -> None:
        """The engine's connection ended before its answer did."""
        connection, self.connection = self.connection, None
        if self.ended or connection is None:
            return
        if connection.used and not connection.answered and self.attempts < 2:
            # The keep-alive race: the engine closed an idle connection just as it was used again. Not one byte of an
            # answer came, so the request has not begun; a fresh connection settles it.
            self._dispatch(None)
        else:
            self._upstream_broken(cause)

    def _relay(self, out: bytes) -> None:
        if not self.first_byte_at:
            out = self._start_stream() + out
        self.bytes_out += len(out)
        self.client.write(out)

    def _start_stream(self) -> bytes:
        self.first_byte_at = now()
        request = self.request
        return stream_head(request.id, self.warning, keep_alive=request.keep_alive, chunked=request.chunked_allowed)

    def _stream_done(self, lane: RawLane, out: bytes) -> None:
        if not self.first_byte_at:
            out = self._start_stream() + out
        self.bytes_out += len(out)
        self._give_connection_back()
        self._end("complete", 200, lane.usage, out, events=lane.events)

    def _answer_done(self, body: bytes) -> None:
        if self.error_status:
            self._give_connection_back()
            self._refuse(self._engine_error(body))
            return
        usage = usage_of(body)
        if self.stream:
            raise BrokenStream("the engine answered a stream with a plain body")
        self._give_connection_back()
        self.first_byte_at = now()
        request = self.request
        out = json_response(body, request.id, self.warning, keep_alive=request.keep_alive)
        self.bytes_out = len(out)
        self._end("complete", 200, usage, out)

    def _engine_error(self, body: bytes) -> Refusal:
        """What an engine refuses is the client's to know; what it fails at is only named as a failure."""
        status = self.error_status
        if status in (429, 503):
            wait_s = int(self.retry_after) if self.retry_after.isdigit() else 2
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

    def _upstream_broken(self, cause: str) -> None:
        """No clean end: before the first byte a plain error, after it an error event; never a [DONE]."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        if not self.first_byte_at:
            self._unavailable(cause)
            return
        self._cut_short("truncated", "the engine ended this answer before it was complete", error=cause)

    def _cut_short(self, outcome: Outcome, message: str, *, error: str) -> None:
        """End a stream that has begun: the client is told by an event, and by the end of the connection."""
        self.request.keep_alive = False
        event = error_event(message, code=outcome)
        out = chunk(event) + LAST_CHUNK if self.request.chunked_allowed else event
        self.bytes_out += len(out)
        self._end(outcome, 200, self._usage(), out, events=self._events(), error=error)

    def _usage(self) -> Usage | None:
        return self._lane.usage if isinstance(self._lane, RawLane) else None

    def _events(self) -> int:
        return self._lane.events if isinstance(self._lane, RawLane) else 0

    def _unavailable(self, cause: str) -> None:
        if self.ended:
            return
        assert self.admission is not None
        wait_s = self.admission.deployment.policy.retry_after_s
        refusal = unavailable(f"no answer from the engine: {cause}", retry_after_s=wait_s, code="engine_unavailable")
        self._refuse(refusal, outcome="upstream_failed")

    # The client's side.

    def client_gone(self) -> None:
        """Nobody waits any more: the engine learns of it by the closed connection."""
        if not self.ended:
            status = 200 if self.first_byte_at else 499
            self._end("client_gone", status, self._usage(), b"", events=self._events())

    def gateway_stops(self) -> None:
        """The time for finishing is over."""
        if self.ended:
            return
        if self.first_byte_at:
            self._cut_short("gateway_stopped", "the gateway was stopped", error="stopped")
        else:
            refusal = unavailable("the gateway was stopped", retry_after_s=2, code="gateway_stopped")
            self._refuse(refusal, outcome="gateway_stopped")

    def client_paused(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def client_resumed(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def check_progress(self, at: float) -> None:
        """Called by the sweep: an engine that sends nothing for too long is given up. A client that reads slowly
        holds the engine back by our own doing: that is its deadline, not the engine's."""
        if self.progressed or self.seats is None or self.client.paused:
            self.progressed = False
            self.quiet_since = at
            return
        assert self.admission is not None
        policy = self.admission.deployment.policy
        if self.first_byte_at and at - self.quiet_since > policy.stall_timeout_s:
            self._upstream_broken(f"nothing came for {policy.stall_timeout_s:g} s in the middle of an answer")
        elif not self.first_byte_at and at - self.quiet_since > policy.first_byte_timeout_s:
            self._upstream_broken(f"no first byte within {policy.first_byte_timeout_s:g} s")

    # The end.

    def _result(self, outcome: Outcome) -> Result:
        if outcome in ("upstream_failed", "truncated"):
            return Result("failed")
        if outcome != "complete":
            return WITHDRAWN
        return Result("answered", first_delta_s=self.first_byte_at - self.seated_at)

    def _give_connection_back(self) -> None:
        connection, self.connection = self.connection, None
        assert connection is not None and self.seats is not None
        connection.release()
        if self.client.paused:
            connection.resume()
        self.seats.pool.give(connection, now())

    def _refuse(self, refusal: Refusal, outcome: Outcome = "refused") -> None:
        if self.ended:
            return
        if refusal.status == 503 and outcome == "refused":
            outcome = "unavailable"
        request = self.request
        out = refusal.response(request.id, keep_alive=request.keep_alive)
        request.keep_alive = request.keep_alive and not refusal.close
        self.bytes_out = len(out)
        self._end(outcome, refusal.status, None, out, error=refusal.code)

    def _end(
        self, outcome: Outcome, status: int, usage: Usage | None, last: bytes, *, events: int = 0, error: str = ""
    ) -> None:
        """Record first, then the last bytes, then the seat."""
        self.ended = True
        worker, request, seats, admission = self.worker, self.request, self.seats, self.admission
        if self.ticket is not None and admission is not None:
            admission.forget(self.ticket)
        if self.connection is not None:
            self.connection.abort()
            self.connection = None
        journal, began = worker.journal, request.began
        source: UsageSource = "engine" if usage is not None else "estimated" if events else "none"
        counted = usage or _NO_USAGE
        journal.write(
            RequestRecord(  # by position: see its docstring
                request.id,
                journal.worker,
                journal.sequence,
                request.at,
                request.route.endpoint,
                status,
                outcome,
                admission.deployment.name if admission is not None else "",
                request.key.id,
                self.stream,
                self.seated_at - began if seats is not None else 0.0,
                self.first_byte_at - began if self.first_byte_at else 0.0,
                now() - began,
                len(request.body),
                self.bytes_out,
                self.attempts,
                seats.replica.name if seats is not None else "",
                seats.replica.launch if seats is not None else "",
                counted.prompt_tokens,
                counted.cached_tokens,
                events if usage is None else usage.completion_tokens or 0,
                source,
                error,
                self.decision,
            )
        )
        if last:
            self.client.write(last)
        if seats is not None and admission is not None:
            self.seats = None
            admission.leave(seats, self._result(outcome))
        self.client.exchange_ended(self)


def _warning(stripped: Iterable[str]) -> bytes:
    """A header line that names the fields that were left out, as far as a header can hold their names."""
    names = ", ".join(sorted(name[:64] for name in stripped if name.isascii() and name.isprintable())[:8])
    return f"x-modelyard-ignored-fields: {names or '(not printable)'}\r\n".encode()


def _request_bytes(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )
