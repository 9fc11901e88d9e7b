"""The life of one request, from a checked body to its record in the journal.

No task, no await: the exchange is called by the client's connection, by admission and by its attempts at an engine, and
ends exactly once, in `_end`. Whatever happens first decides: a later event finds `ended` set and changes nothing."""

from __future__ import annotations

from time import monotonic as now
from typing import Protocol

import msgspec

from modelyard.gateway.admission import WITHDRAWN, Admission, Queued, Result
from modelyard.gateway.attempt import Attempt, Failure, Reader
from modelyard.gateway.breaker import CLOSED, Event
from modelyard.gateway.debug_window import overheard
from modelyard.gateway.dialects.dialect import renamed
from modelyard.gateway.estimate import prompt_tokens
from modelyard.gateway.heads import json_response, stream_head
from modelyard.gateway.hedge import Hedge, may_be_hedged
from modelyard.gateway.lanes import LAST_CHUNK, Usage, chunk
from modelyard.gateway.refusals import POISON_REQUEST, Refusal, error_event, unavailable
from modelyard.gateway.request import Request
from modelyard.gateway.seats import Seats
from modelyard.gateway.suspected import Suspected
from modelyard.gateway.turns import Work
from modelyard.gateway.worker import Worker
from modelyard.records.decision import Admitted, Decision
from modelyard.records.journal import Attempt as Tried
from modelyard.records.journal import AttemptKind, Outcome, RequestRecord, UsageSource
from modelyard.records.topology import Deployment

_NO_USAGE = Usage()
_FAILED = Result("failed")
_TRIED: dict[str, AttemptKind] = {
    "unconnected": "refused",
    "overloaded": "refused",
    "lost": "failed",
    "erred": "failed",
    "late": "late",
}
_TRUNCATED = "the engine ended this answer before it was complete"
_DEGRADED = b"x-modelyard-degraded: no replica is sound; the least bad one answered\r\n"


class Client(Reader, Protocol):
    """Who asked."""

    def exchange_ended(self, exchange: Exchange) -> None:
        """The exchange's record stands in the journal, its last bytes are written."""
        ...


class Exchange(Suspected):
    """One request to one deployment. `attempt` is its sending to a replica, from `seated` until `_end`; beside it
    `hedge` may have another one under way until one of them answers."""

    ended = False
    attempts = 0
    bytes_out = 0
    events_before = 0
    seated_at = first_byte_at = 0.0
    ticket: Queued | None = None
    decision: Decision | None = None
    admitted: Admitted | None = None
    attempt: Attempt | None = None
    hedge: Hedge | None = None
    # What the record ends with.
    cost_pico = 0
    tried: tuple[Tried, ...] = ()
    failed: tuple[Seats, ...] = ()
    resumed = 0

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        super().__init__(worker, request)
        self.client = client

    def begin(self) -> None:
        """Check what is asked and ask for a seat; every refusal is answered here."""
        if self.ended:
            return
        try:
            admission = self.check()
            admission.requests += 1
            if admission.suspects:
                self.suspect(admission)
            self._enter(admission)
        except Refusal as refusal:
            self._refuse(refusal)

    def begin_by_steps(self) -> Work:
        """As `begin`, with rests while the body is read: for large ones."""
        try:
            for _ in self.read_body():
                yield
                if self.ended:
                    return
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            self.begin()

    def authorized(self, deployment: Deployment) -> None:
        """While a debug window is open, what this client is told is written down: refusals too."""
        if self.request.at < deployment.debug_until:
            self.client = overheard(self.client, self.worker.debug, deployment)

    def _enter(self, admission: Admission) -> None:
        """Raises Refusal. What the door decided stands in the record, either way."""
        try:
            self.ticket = ticket = admission.enter(self, self.asking, now())
        except Refusal as refusal:
            self.admitted = refusal.admitted
            raise
        if ticket is not None:
            self.admitted = ticket.admitted

    # Admission's side.

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.ticket = None
        self.decision = decision
        at = now()
        self.seated_at = self.seated_at or at
        self.attempt = attempt = Attempt(self, seats, at)
        attempt.send(seats.pool.take(at))
        if self.stream and not self.tried:
            self._prepare_hedge(attempt)

    def _prepare_hedge(self, attempt: Attempt) -> None:
        admission = self.admission
        assert admission is not None
        if not self.asking.suspect and may_be_hedged(len(self.request.body), admission):
            self.hedge = Hedge(self, attempt, admission, self.worker)

    def not_seated(self, refusal: Refusal) -> None:
        self.ticket = None
        # Where the door is another worker's, its decision comes with its word.
        self.admitted = refusal.admitted or self.admitted
        self._refuse(refusal)

    # The attempt's side.

    def attempt_begins_answer(self, attempt: Attempt) -> bytes:
        if attempt.seats.breaker.state == "half_open":
            self._learn(attempt.seats, "answered")
        self._choose(attempt)
        if self.asking.suspect and self.admission is not None:
            self.look_whether_passed(self.admission, attempt)
        if self.first_byte_at:
            return b""
        self.first_byte_at = now()
        request = self.request
        return stream_head(request.id, self._notes(), keep_alive=request.keep_alive, chunked=request.chunked_allowed)

    def attempt_streamed(self, attempt: Attempt, usage: Usage | None, last: bytes) -> None:
        self.bytes_out += len(last)
        verdict = attempt.lane.verdict if attempt.lane is not None else ""
        self._end("complete", 200, usage, last, events=self.events_before + attempt.events(), error=verdict)

    def attempt_answered(self, attempt: Attempt, body: bytes, usage: Usage | None, verdict: str) -> None:
        self.first_byte_at = now()
        request, fields = self.request, self._notes()
        if verdict:
            fields += b"x-modelyard-answer-check: %b\r\n" % verdict.encode()
        out = json_response(body, request.id, fields, keep_alive=request.keep_alive)
        self.bytes_out = len(out)
        self._end("complete", 200, usage, out, error=verdict)

    def attempt_refused(self, attempt: Attempt, refusal: Refusal, usage: Usage | None) -> None:
        self._choose(attempt)
        self._refuse(renamed(refusal, self.names), usage=usage)

    def _choose(self, attempt: Attempt) -> None:
        """Of two that may be under way, this one answers."""
        if self.hedge is not None:
            hedge, self.hedge = self.hedge, None
            hedge.answered(attempt)

    def attempt_failed(self, attempt: Attempt, failure: Failure) -> None:
        """Before the first piece of an answer another replica is asked, or a plain error told; after it an error event:
        never a [DONE]."""
        if self.ended:
            return
        if failure.kind == "unconnected":
            attempt.seats.refusing = True
        if self.admission is not None:
            self.lost(self.admission, attempt, failure)
        self._learn(attempt.seats, failure.event)
        if self._has_another(attempt, failure):
            return
        if self.first_byte_at:
            if not self._resume(attempt, failure):
                self._cut_short("truncated", _TRUNCATED, error=failure.cause)
        elif self._may_retry(attempt, failure):
            self._retry(attempt, failure)
        elif failure.refusal is not None:
            self._refuse(failure.refusal, outcome="unavailable" if failure.kind == "overloaded" else "upstream_failed")
        else:
            self._unavailable(failure.cause)

    def _has_another(self, attempt: Attempt, failure: Failure) -> bool:
        """Whether another sending is under way, which may answer yet."""
        hedge, self.hedge = self.hedge, None
        return hedge is not None and hedge.goes_on(attempt, _TRIED[failure.kind], failure.cause)

    def _may_retry(self, attempt: Attempt, failure: Failure) -> bool:
        """Nothing reached the client, so nothing can happen twice. What was not even sent costs nothing to try."""
        admission = self.admission
        assert admission is not None
        if not admission.has_other(self._failed_by(attempt)):
            return False
        if failure.kind == "unconnected":
            return True
        sent = sum(one.kind != "refused" for one in self.tried) + 1
        return sent < admission.deployment.policy.failover.sendings and admission.take_retry(now())

    def _failed_by(self, attempt: Attempt) -> frozenset[str]:
        """The replicas whose present launch has failed this request: one that was started anew may be asked again."""
        assert self.admission is not None
        present = self.admission.seats
        failed = (*self.failed, attempt.seats)
        return frozenset([one.replica.name for one in failed if present.get(one.replica.name) is one])

    def _retry(self, attempt: Attempt, failure: Failure) -> None:
        """Give the seat back and ask for one elsewhere."""
        admission = self.admission
        assert admission is not None
        self.note(attempt, _TRIED[failure.kind], failure.cause)
        self.attempt = None
        before = self.asking
        self.asking = msgspec.structs.replace(before, excluded=self._failed_by(attempt), again=True)
        self.failed = (*self.failed, attempt.seats)
        admission.leave(attempt.seats, _FAILED, before)
        self.suspect(admission)
        try:
            self._enter(admission)
        except Refusal as refusal:
            self._refuse(refusal)

    def _resume(self, attempt: Attempt, failure: Failure) -> bool:
        """Let another replica go on from what was sent; False where none can."""
        if self.resumable is None or not self._may_retry(attempt, failure):
            return False
        body = self.resumable.go_on()
        if body is None:
            return False
        self.remember_body()
        self.body = body
        self.resumed += 1
        self.events_before += attempt.events() if attempt.relaying else 0
        self._retry(attempt, failure)
        return True

    def note(self, attempt: Attempt, kind: AttemptKind, cause: str) -> None:
        """This sending brought no answer to the client."""
        replica, began = attempt.seats.replica, self.request.began
        tried = Tried(
            replica=replica.name,
            launch=replica.launch,
            began_s=attempt.began - began,
            ended_s=now() - began,
            kind=kind,
            cause=cause,
        )
        self.tried = (*self.tried, tried)

    def _learn(self, seats: Seats, event: Event) -> None:
        assert self.admission is not None
        self.admission.learn(seats, event, now(), self.worker.chance())

    def _notes(self) -> bytes:
        """Header lines beside those that every response has."""
        notes = self.warning
        if self.reservation is not None:
            notes += self.reservation.lines
        panic = self.decision is not None and self.decision.panic
        return notes + _DEGRADED if panic else notes

    def _cut_short(self, outcome: Outcome, message: str, *, error: str) -> None:
        """End a stream that has begun: the client is told by an event, and by the end of the connection."""
        attempt = self.attempt
        self.request.keep_alive = False
        if attempt is not None and attempt.lane is not None:
            event = attempt.lane.failed(message, outcome)
        else:
            event = error_event(message, code=outcome)
        out = chunk(event) + LAST_CHUNK if self.request.chunked_allowed else event
        self.bytes_out += len(out)
        self._end(
            outcome, 200, attempt.usage() if attempt is not None else None, out, events=self._events(), error=error
        )

    def _events(self) -> int:
        """Pieces of the stream that went to the client, by whichever replica."""
        attempt = self.attempt
        return self.events_before + (attempt.events() if attempt is not None and attempt.relaying else 0)

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
        self._end("client_gone", status, attempt.usage() if attempt is not None else None, b"", events=self._events())

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
        if self.hedge is not None:
            self.hedge.pause()

    def client_resumed(self) -> None:
        if self.attempt is not None:
            self.attempt.resume()
        if self.hedge is not None:
            self.hedge.resume()

    def check_progress(self, at: float) -> None:
        """Called by the sweep."""
        attempt, admission = self.attempt, self.admission
        if attempt is None or admission is None:
            return
        policy = admission.deployment.policy
        attempt.check_progress(at, policy)
        if self.asking.suspect and self.attempt is attempt:
            self.look_whether_passed(admission, attempt)
        if self.hedge is not None:
            self.hedge.check_progress(at, policy)
        limit_s = policy.failover.first_token_s
        if limit_s is not None and self.stream and not attempt.relaying and at - attempt.began > limit_s:
            self._move_on(attempt, admission, limit_s)

    def _move_on(self, attempt: Attempt, admission: Admission, limit_s: float) -> None:
        """The first token is late: another replica is asked if one is free, else this one has all the time it needs."""
        is_asked = self.hedge is not None and self.hedge.is_sent
        if not attempt.over and not is_asked and admission.has_free(self._failed_by(attempt)):
            attempt.fail("late", f"no first token within {limit_s:g} s")

    # The end.

    def _result(self, outcome: Outcome, usage: Usage | None, seated_at: float) -> Result:
        if outcome in ("upstream_failed", "truncated"):
            return _FAILED
        if outcome != "complete":
            return WITHDRAWN
        # A plain answer is held until it is whole: when its first token came is not known.
        first_delta_s = max(0.0, self.first_byte_at - seated_at) if self.stream else 0.0
        held_s = now() - seated_at
        if usage is None:
            return Result("answered", first_delta_s, 0, held_s)
        fresh = usage.prompt_tokens - usage.cached_tokens
        return Result("answered", first_delta_s, usage.prompt_tokens + (usage.completion_tokens or 0), held_s, fresh)

    def _refuse(self, refusal: Refusal, outcome: Outcome = "refused", usage: Usage | None = None) -> None:
        if self.ended:
            return
        if self.first_byte_at:
            # It was to be resumed, and was not: its head is out, with a 200.
            self._cut_short("truncated", _TRUNCATED, error=refusal.message)
            return
        if refusal.status == 503 and outcome == "refused":
            outcome = "unavailable"
        if refusal.code == POISON_REQUEST and self.tried:
            # It was sent: that it got no answer is the engine's fault.
            outcome = "upstream_failed"
        request = self.request
        out = refusal.response(request.id, keep_alive=request.keep_alive, shape=request.route.shape)
        request.keep_alive = request.keep_alive and not refusal.close
        self.bytes_out = len(out)
        self._end(outcome, refusal.status, usage, out, error=refusal.code)

    def _end(
        self, outcome: Outcome, status: int, usage: Usage | None, last: bytes, *, events: int = 0, error: str = ""
    ) -> None:
        """Record first, then the last bytes, then the seat."""
        self.ended = True
        if self.hedge is not None:
            hedge, self.hedge = self.hedge, None
            hedge.end()
        worker, request, admission = self.worker, self.request, self.admission
        if self.ticket is not None and admission is not None:
            admission.forget(self.ticket)
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.abandon()
        replica = attempt.seats.replica if attempt is not None else None
        journal, began = worker.journal, request.began
        source: UsageSource = "engine" if usage is not None else "none"
        counted = usage or _NO_USAGE
        prompt, completion = counted.prompt_tokens, counted.completion_tokens or 0
        if usage is None and (events or (outcome == "client_gone" and self.attempts)):
            # Nobody will say any more what it was: what the engine has read and written all the same.
            source, prompt, completion = "estimated", prompt_tokens(len(request.body)), events
        if admission is not None and (prices := admission.deployment.policy.prices) is not None:
            self.cost_pico = prices.cost_pico(prompt, counted.cached_tokens, completion)
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
                prompt,
                counted.cached_tokens,
                completion,
                source,
                error,
                self.decision,
                self.cost_pico,
                self.trace_id,
                self.tried,
                self.resumed,
                self.trace_parent,
                self.admitted,
            )
        )
        if self.reservation is not None:
            self.reservation.settle(prompt + completion, self.cost_pico, now())
        if last:
            self.client.write(last)
        if attempt is not None and admission is not None:
            if attempt.seats.breaker is not CLOSED and outcome not in ("upstream_failed", "truncated", "unavailable"):
                self._learn(attempt.seats, "answered" if outcome in ("complete", "refused") else "withdrawn")
            if admission.suspects and outcome in ("complete", "refused"):
                self.cleared(admission, attempt)
            admission.leave(attempt.seats, self._result(outcome, usage, attempt.began), self.asking)
        self.client.exchange_ended(self)
