"""The life of one request, from a checked body to its record in the journal.

No task, no await: the exchange is called by the client's connection, by admission and by its attempts at an engine, and
ends exactly once, in `_end`. Whatever happens first decides: a later event finds `ended` set and changes nothing."""

from __future__ import annotations

from time import monotonic as now
from typing import Protocol

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Result, Seats
from modelyard.gateway.attempt import Attempt, Reader
from modelyard.gateway.fields import parse, upstream_body, usage_asked, warning_of
from modelyard.gateway.heads import json_response, stream_head
from modelyard.gateway.lanes import LAST_CHUNK, Usage, chunk
from modelyard.gateway.refusals import Refusal, error_event, unavailable, unknown_model
from modelyard.gateway.request import Request
from modelyard.gateway.worker import Worker
from modelyard.records.decision import Decision
from modelyard.records.journal import Attempt as Tried
from modelyard.records.journal import Outcome, RequestRecord, UsageSource

_NO_USAGE = Usage()


class Client(Reader, Protocol):
    """Who asked."""

    def exchange_ended(self, exchange: Exchange) -> None:
        """The exchange's record stands in the journal, its last bytes are written."""
        ...


class Exchange:
    """One request to one deployment. `attempt` is its sending to a replica, from `seated` until `_end`."""

    ended = stream = usage_asked = False
    attempts = 0
    bytes_out = 0
    seated_at = first_byte_at = 0.0
    body = b""
    warning = b""
    admission: Admission | None = None
    asking = Asking()
    ticket: Queued | None = None
    decision: Decision | None = None
    attempt: Attempt | None = None
    # What the record ends with.
    cost_pico = 0
    trace_id = ""
    tried: tuple[Tried, ...] = ()
    resumed = 0

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        self.worker, self.client, self.request = worker, client, request

    def begin(self) -> None:
        """Check what is asked and ask for a seat; every refusal is answered here."""
        if self.ended:
            return
        try:
            admission = self._check()
            self.ticket = admission.enter(self, self.asking, now())
        except Refusal as refusal:
            self._refuse(refusal)

    def _check(self) -> Admission:
        """All that can be refused before a seat is asked for. Returns the door to ask at."""
        request, worker = self.request, self.worker
        endpoint = request.route.endpoint
        parsed = parse(request.body, endpoint)
        parsed.key_id = request.key.id
        call = parsed.call
        self.stream = call.stream is True
        self.usage_asked = self.stream and usage_asked(call)
        admission = worker.admissions.get(call.model)
        if admission is None:
            raise unknown_model(call.model)
        self.admission = admission
        worker.keyring.authorize(request.key, call.model, endpoint)
        self.body = upstream_body(parsed, admission.deployment)
        if parsed.stripped or parsed.bounded:
            self.warning = warning_of(parsed)
        self.asking = Asking(key_id=request.key.id)
        return admission

    # Admission's side.

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.ticket = None
        self.decision = decision
        self.seated_at = at = now()
        self.attempt = attempt = Attempt(self, seats)
        attempt.send(seats.pool.take(at))

    def not_seated(self, reason: str) -> None:
        assert self.admission is not None
        self.ticket = None
        deployment = self.admission.deployment
        self._refuse(unavailable(f"{deployment.name!r}: {reason}", retry_after_s=deployment.policy.retry_after_s))

    # The attempt's side.

    def attempt_begins_answer(self) -> bytes:
        self.first_byte_at = now()
        request = self.request
        return stream_head(request.id, self.warning, keep_alive=request.keep_alive, chunked=request.chunked_allowed)

    def attempt_streamed(self, attempt: Attempt, usage: Usage | None, last: bytes) -> None:
        self.bytes_out += len(last)
        self._end("complete", 200, usage, last, events=attempt.events())

    def attempt_answered(self, attempt: Attempt, body: bytes, usage: Usage | None) -> None:
        self.first_byte_at = now()
        request = self.request
        out = json_response(body, request.id, self.warning, keep_alive=request.keep_alive)
        self.bytes_out = len(out)
        self._end("complete", 200, usage, out)

    def attempt_refused(self, attempt: Attempt, refusal: Refusal) -> None:
        self._refuse(refusal)

    def attempt_unconnected(self, attempt: Attempt, cause: str) -> None:
        admission = self.admission
        assert admission is not None
        if not self.ended and admission.refused(attempt.seats):
            self._move(attempt, admission)
        else:
            self._unavailable(cause)

    def attempt_failed(self, attempt: Attempt, cause: str) -> None:
        """Before the first byte a plain error, after it an error event; never a [DONE]."""
        if not self.first_byte_at:
            self._unavailable(cause)
        else:
            self._cut_short("truncated", "the engine ended this answer before it was complete", error=cause)

    def _move(self, attempt: Attempt, admission: Admission) -> None:
        """Give the seat back and ask for another one. Nothing was sent yet, so nothing can happen twice."""
        self.attempt = None
        admission.leave(attempt.seats, WITHDRAWN)
        try:
            self.ticket = admission.enter(self, self.asking, now())
        except Refusal as refusal:
            self._refuse(refusal)

    def _cut_short(self, outcome: Outcome, message: str, *, error: str) -> None:
        """End a stream that has begun: the client is told by an event, and by the end of the connection."""
        assert self.attempt is not None
        self.request.keep_alive = False
        event = error_event(message, code=outcome)
        out = chunk(event) + LAST_CHUNK if self.request.chunked_allowed else event
        self.bytes_out += len(out)
        self._end(outcome, 200, self.attempt.usage(), out, events=self.attempt.events(), error=error)

    def _unavailable(self, cause: str) -> None:
        if self.ended:
            return
        assert self.admission is not None
        wait_s = self.admission.deployment.policy.retry_after_s
        refusal = unavailable(f"no answer from the engine: {cause}", retry_after_s=wait_s, code="engine_unavailable")
        self._refuse(refusal, outcome="upstream_failed")

    # The client's side.

    def client_gone(self) -> None:
        """Nobody waits any more."""
        if self.ended:
            return
        attempt, status = self.attempt, 200 if self.first_byte_at else 499
        if attempt is None:
            self._end("client_gone", status, None, b"")
        else:
            self._end("client_gone", status, attempt.usage(), b"", events=attempt.events())

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
        if self.attempt is not None:
            self.attempt.pause()

    def client_resumed(self) -> None:
        if self.attempt is not None:
            self.attempt.resume()

    def check_progress(self, at: float) -> None:
        """Called by the sweep."""
        if self.attempt is not None and self.admission is not None:
            self.attempt.check_progress(at, self.admission.deployment.policy)

    # The end.

    def _result(self, outcome: Outcome) -> Result:
        if outcome in ("upstream_failed", "truncated"):
            return Result("failed")
        if outcome != "complete":
            return WITHDRAWN
        return Result("answered", first_delta_s=self.first_byte_at - self.seated_at)

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
        worker, request, admission = self.worker, self.request, self.admission
        if self.ticket is not None and admission is not None:
            admission.forget(self.ticket)
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.abandon()
        replica = attempt.seats.replica if attempt is not None else None
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
                self.seated_at - began if replica is not None else 0.0,
                self.first_byte_at - began if self.first_byte_at else 0.0,
                now() - began,
                len(request.body),
                self.bytes_out,
                self.attempts,
                replica.name if replica is not None else "",
                replica.launch if replica is not None else "",
                counted.prompt_tokens,
                counted.cached_tokens,
                events if usage is None else usage.completion_tokens or 0,
                source,
                error,
                self.decision,
                self.cost_pico,
                self.trace_id,
                self.tried,
                self.resumed,
            )
        )
        if last:
            self.client.write(last)
        if attempt is not None and admission is not None:
            admission.leave(attempt.seats, self._result(outcome))
        self.client.exchange_ended(self)
