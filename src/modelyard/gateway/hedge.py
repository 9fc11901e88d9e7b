"""A stream whose first token is late is sent to a second replica; the first of the two that has one answers.

This is the one place where two sendings of a request exist at a time, and where it is decided between them. The request
goes on with the one that is left and never learns that there were two, but by its record."""

from __future__ import annotations

from time import monotonic as now
from typing import Protocol

import msgspec

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Result
from modelyard.gateway.attempt import Attempt, Holder
from modelyard.gateway.estimate import prompt_tokens
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.seats import Seats
from modelyard.gateway.timers import Timer
from modelyard.gateway.worker import Worker
from modelyard.records.decision import Decision
from modelyard.records.journal import AttemptKind
from modelyard.records.topology import Policy

_FAILED = Result("failed")
# A loop that was held up runs its timers before it reads its sockets: what lies there already is read first.
_READ_FIRST_S = 0.001
_NEITHER = "the request ended before either had answered"


class Hedged(Holder, Protocol):
    """The request. `attempt` is the sending that it goes on with, `failed` are launches that have failed it."""

    asking: Asking
    attempt: Attempt | None
    decision: Decision | None
    failed: tuple[Seats, ...]

    def note(self, attempt: Attempt, kind: AttemptKind, cause: str) -> None:
        """This sending brought no answer to the client."""
        ...


class Hedge:
    """What may become a second sending of a stream, and then is. It lives until the first piece of an answer, the first
    failure or the request's end, whichever comes first; it is told of each."""

    _second: Attempt | None = None
    _decision: Decision | None = None
    _ticket: Queued | None = None
    _asking = Asking()

    def __init__(self, holder: Hedged, first: Attempt, admission: Admission, worker: Worker) -> None:
        self._holder, self._first, self._admission, self._worker = holder, first, admission, worker
        late_s = admission.hedging.late_s(admission.deployment.policy.failover.hedge_share)
        self._timer: Timer | None = worker.later(late_s, self._wake) if late_s is not None else None

    @property
    def is_sent(self) -> bool:
        return self._second is not None

    # Time.

    def _wake(self) -> None:
        self._timer = self._worker.later(_READ_FIRST_S, self._ask)

    def _ask(self) -> None:
        """The first token is late: a seat is asked for at another replica, if one is to be had at once."""
        self._timer = None
        admission, excluded = self._admission, frozenset((self._first.seats.replica.name,))
        if self._holder.client.paused or self._worker.pressure.level:
            return
        if admission.queue.waiting or not admission.has_free(excluded):
            return
        if not admission.hedging.take(admission.requests, admission.deployment.policy.failover.hedge_share):
            return
        # The key is not charged for it: one answer is given, and the request's own seat is charged for that.
        self._asking = msgspec.structs.replace(self._holder.asking, tokens=0, excluded=excluded, at_once=True)
        try:
            self._ticket = admission.enter(self, self._asking, now())
        except Refusal as refusal:
            self.not_seated(refusal)

    # Admission's side.

    def seated(self, seats: Seats, decision: Decision) -> None:
        self._ticket = None
        self._decision = decision
        at = now()
        self._second = attempt = Attempt(self._holder, seats, at)
        attempt.send(seats.pool.take(at))

    def not_seated(self, refusal: Refusal) -> None:
        """Nothing is lost: the first sending is under way."""
        self._ticket = None

    # The request's side.

    def pause(self) -> None:
        if self._second is not None:
            self._second.pause()

    def resume(self) -> None:
        if self._second is not None:
            self._second.resume()

    def check_progress(self, at: float, policy: Policy) -> None:
        if self._second is not None:
            self._second.check_progress(at, policy)

    def answered(self, winner: Attempt) -> None:
        """This one has the first piece of an answer, or the engine's refusal: the other one is given up."""
        if winner.relaying:
            self._admission.hedging.learn(now() - self._first.began)
        loser = self._go_on_with(winner)
        if loser is not None:
            loser.abandon()
            self._part(loser, "outrun" if loser is self._first else "hedge_lost")

    def goes_on(self, attempt: Attempt, kind: AttemptKind, cause: str) -> bool:
        """This one has failed, and what it teaches is learned. Whether another one is under way, which may answer."""
        if self._second is None:
            self._call_off()
            return False
        self._go_on_with(self._second if attempt is self._first else self._first)
        self._holder.failed = (*self._holder.failed, attempt.seats)
        self._holder.note(attempt, kind, cause)
        self._admission.leave(attempt.seats, _FAILED, self._asking)
        return True

    def end(self) -> None:
        """The request is over without an answer."""
        second = self._second
        self._go_on_with(self._first)
        if second is not None:
            second.abandon()
            self._part(second, "hedge_lost", _NEITHER)

    def _go_on_with(self, attempt: Attempt) -> Attempt | None:
        """Returns the other one."""
        self._call_off()
        if attempt is self._first:
            return self._second
        self._holder.attempt, self._holder.decision = attempt, self._decision
        return self._first

    def _call_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ticket is not None:
            self._admission.forget(self._ticket)

    def _part(self, loser: Attempt, kind: AttemptKind, cause: str = "") -> None:
        """Its seat is free. That it was slower says nothing of its replica that a breaker should learn."""
        self._holder.note(loser, kind, cause)
        self._admission.learn(loser.seats, "withdrawn", now(), self._worker.chance())
        self._admission.leave(loser.seats, WITHDRAWN, self._asking)


def may_be_hedged(body_bytes: int, admission: Admission) -> bool:
    """Whether a stream may be, by its prompt and by what its deployment wants and has."""
    limits = admission.deployment.policy.failover
    if not limits.hedge_share or limits.sendings < 2 or len(admission.seats) < 2:
        return False
    return prompt_tokens(body_bytes) <= limits.hedge_prompt_tokens
