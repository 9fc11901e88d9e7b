"""The life of one request, from a checked body to its record in the journal.

No task, no await: the exchange is called by the client's connection, by admission and by the engine's connection, and
ends exactly once, in `_end`. Whatever happens first decides: a later event finds `ended` set and changes nothing."""

from __future__ import annotations

import asyncio
from time import monotonic as now
from typing import Protocol

import msgspec

from modelyard.gateway.admission import Admission, Queued, Seats
from modelyard.gateway.fields import CHAT, COMPLETION, Call, Upstream, parse, upstream_body
from modelyard.gateway.heads import json_head, stream_head
from modelyard.gateway.lanes import LAST_CHUNK, BrokenStream, RawLane, Usage, WholeLane, chunk, usage_of
from modelyard.gateway.refusals import Refusal, error_event, unavailable, unknown_model
from modelyard.gateway.request import Request
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.gateway.worker import Worker
from modelyard.records.decision import Decision
from modelyard.records.journal import Outcome, RequestRecord, UsageSource

_TABLES = {"/v1/chat/completions": (CHAT, "messages"), "/v1/completions": (COMPLETION, "prompt")}


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

    def exchange_ended(self, exchange: Exchange, last: bytes) -> None:
        """The exchange's record stands in the journal; `last` are its last bytes."""
        ...


class Exchange:
    """One request to one deployment. `seats` is held from `seated` until `_end`."""

    ended = False
    progressed = True
    attempts = 0
    bytes_out = 0
    seated_at = first_byte_at = quiet_since = 0.0
    error_status = 0
    retry_after = b""
    admission: Admission | None = None
    seats: Seats | None = None
    ticket: Queued | None = None
    decision: Decision | None = None
    call: Call | None = None
    upstream: Upstream | None = None
    connection: UpstreamConnection | None = None
    _lane: RawLane | WholeLane | None = None
    _connecting: asyncio.Task[None] | None = None

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        self.worker, self.client, self.request = worker, client, request

    def begin(self) -> None:
        """Check what is asked and ask for a seat; every refusal is answered here."""
        try:
            self.call = call = parse(self.request.body)
            admission = self.worker.admissions.get(call.model)
            if admission is None:
                raise unknown_model(call.model)
            self.admission = admission
            self.worker.keyring.authorize(self.request.key, call.model, self.request.route.endpoint)
            table, required = _TABLES[self.request.route.endpoint]
            self.upstream = upstream_body(call, table, required, admission.deployment)
            self.ticket = admission.enter(self, now())
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
        self._refuse(unavailable(f"{deployment.name!r}: {reason}", retry_after_s=deployment.retry_after_s))

    # The engine's side.

    def _dispatch(self, connection: UpstreamConnection | None) -> None:
        if connection is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        assert self.upstream is not None
        self.connection = connection
        self.attempts += 1
        self.progressed = True
        if self.client.paused:
            connection.pause()
        connection.send(self, _request_bytes(self.request.route.endpoint, self.upstream.body))

    async def _connect(self) -> None:
        assert self.seats is not None
        try:
            connection = await self.seats.pool.connect()
        except (OSError, TimeoutError) as error:
            self._unavailable(f"the engine does not take connections ({type(error).__name__})")
            return
        if self.ended:
            connection.abort()
        else:
            self._dispatch(connection)

    def upstream_head(self, status: int, content_type: bytes, retry_after: bytes) -> None:
        call, upstream = self.call, self.upstream
        assert call is not None and upstream is not None
        if status != 200:
            self.error_status, self.retry_after = status, retry_after
        elif call.stream and content_type.startswith(b"text/event-stream"):
            self._lane = RawLane(upstream.usage_asked, self.request.chunked_allowed)
            return
        self._lane = WholeLane()

    def upstream_read(self, raw: bytes, pieces: list[bytes], between_chunks: bool, done: bool) -> None:
        lane = self._lane
        self.progressed = True
        try:
            if type(lane) is RawLane:
                out = lane.read(raw, pieces, between_chunks, done)
                if done:
                    self._stream_done(lane, out)
                elif self.first_byte_at:
                    self.bytes_out += len(out)
                    self.client.write(out)
                elif out:
                    self._first_bytes(out)
            elif type(lane) is WholeLane:
                lane.read(pieces)
                if done:
                    self._answer_done(lane.body())
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

    def _first_bytes(self, out: bytes) -> None:
        out = self._start_stream() + out
        self.bytes_out += len(out)
        self.client.write(out)

    def _start_stream(self) -> bytes:
        self.first_byte_at = now()
        request = self.request
        return stream_head(request.id, self._warning(), keep_alive=request.keep_alive, chunked=request.chunked_allowed)

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
        call = self.call
        assert call is not None
        if call.stream:
            raise BrokenStream("the engine answered a stream with a plain body")
        self._give_connection_back()
        self.first_byte_at = now()
        request = self.request
        out = json_head(len(body), request.id, self._warning(), keep_alive=request.keep_alive) + body
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
        except (msgspec.MsgspecError, UnicodeDecodeError):
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
        self.request.keep_alive = False
        event = error_event("the engine ended this answer before it was complete", code="truncated")
        out = chunk(event) + LAST_CHUNK if self.request.chunked_allowed else event
        self.bytes_out += len(out)
        lane = self._lane
        usage, events = (lane.usage, lane.events) if isinstance(lane, RawLane) else (None, 0)
        self._end("truncated", 200, usage, out, events=events, error=cause)

    def _unavailable(self, cause: str) -> None:
        if self.ended:
            return
        assert self.admission is not None
        wait_s = self.admission.deployment.retry_after_s
        refusal = unavailable(f"no answer from the engine: {cause}", retry_after_s=wait_s, code="engine_unavailable")
        self._refuse(refusal, outcome="upstream_failed")

    # The client's side.

    def client_gone(self) -> None:
        """Nobody waits any more: the engine learns of it by the closed connection."""
        if self.ended:
            return
        lane = self._lane
        usage, events = (lane.usage, lane.events) if isinstance(lane, RawLane) else (None, 0)
        self._end("client_gone", 200 if self.first_byte_at else 499, usage, b"", events=events)

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
        deployment = self.admission.deployment
        if self.first_byte_at and at - self.quiet_since > deployment.stall_timeout_s:
            self._upstream_broken(f"nothing came for {deployment.stall_timeout_s:g} s in the middle of an answer")
        elif not self.first_byte_at and at - self.quiet_since > deployment.first_byte_timeout_s:
            self._upstream_broken(f"no first byte within {deployment.first_byte_timeout_s:g} s")

    # The end.

    def _warning(self) -> str:
        stripped = self.upstream.stripped if self.upstream is not None else ()
        if not stripped:
            return ""
        names = ", ".join(name[:64] for name in stripped[:8] if name.isascii() and name.isprintable())
        return f"x-modelyard-ignored-fields: {names}\r\n"

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
        if self.ticket is not None:
            self.ticket.gone = True
        if self.connection is not None:
            self.connection.abort()
            self.connection = None
        worker, request, seats = self.worker, self.request, self.seats
        ended_at = now()
        source: UsageSource = "engine" if usage is not None else "estimated" if events else "none"
        worker.journal.write(
            RequestRecord(
                request_id=request.id,
                worker=worker.journal.worker,
                sequence=request.sequence,
                at=request.at,
                endpoint=request.route.endpoint,
                status=status,
                outcome=outcome,
                deployment=self.admission.deployment.name if self.admission is not None else "",
                key_id=request.key.id,
                stream=self.call is not None and self.call.stream,
                queued_s=_since(request.began, self.seated_at),
                first_byte_s=_since(request.began, self.first_byte_at),
                total_s=_since(request.began, ended_at),
                bytes_in=len(request.body),
                bytes_out=self.bytes_out,
                attempts=self.attempts,
                replica=seats.replica.name if seats is not None else "",
                launch=seats.replica.launch if seats is not None else "",
                prompt_tokens=usage.prompt_tokens if usage is not None else 0,
                cached_tokens=usage.cached_tokens if usage is not None else 0,
                completion_tokens=(usage.completion_tokens or 0) if usage is not None else events,
                usage_source=source,
                error=error,
                decision=self.decision,
            )
        )
        self.client.exchange_ended(self, last)
        if seats is not None and self.admission is not None:
            self.seats = None
            self.admission.leave(seats)


def _since(began: float, at: float) -> float:
    return round(at - began, 6) if at else 0.0


def _request_bytes(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )
