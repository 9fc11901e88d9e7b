"""Who goes when: per replica a cap on requests in flight, per deployment a bounded queue with a deadline.

State without I/O: nothing here sends a byte. A seat is a place at one launch of one replica; whoever holds one gives it
back exactly once."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import Protocol

import msgspec

from modelyard.gateway.asking import WITHDRAWN, Asking, Result
from modelyard.gateway.balance import NOBODY_LEFT, choose
from modelyard.gateway.breaker import CLOSED, Event, learned, probed, stepped
from modelyard.gateway.budget import Budget
from modelyard.gateway.entry import admit, retry_after_s
from modelyard.gateway.fair_queue import FairQueue
from modelyard.gateway.hedging import Hedging
from modelyard.gateway.poison import SentAs, Suspects
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.shares import Shares
from modelyard.gateway.standing import Mean, Standing
from modelyard.gateway.upstream import Pool
from modelyard.records.decision import Admitted, Candidate, Decision, Entry
from modelyard.records.topology import Deployment

__all__ = ["WITHDRAWN", "Admission", "Asking", "Queued", "Result", "Seats", "Waiter"]

# Decisions about waiting that are kept for a replay: one of so many, the last so many.
RECORD_EVERY = 8
RECORDED = 256


class Waiter(Protocol):
    """A request that waits for a seat. Exactly one of the two is called, once, unless it leaves the queue itself."""

    def seated(self, seats: Seats, decision: Decision) -> None: ...

    def not_seated(self, refusal: Refusal) -> None: ...


@dataclass(slots=True, eq=False)
class Queued:
    """A place in the queue. `waiting` is the queue's; `admitted` why it was let in."""

    waiter: Waiter
    asking: Asking
    deadline: float
    waiting: bool = False
    admitted: Admitted | None = None


@dataclass(slots=True)
class Admission:
    """One deployment's door. `deployment` is replaced as the topology changes; seats live as long as their launch.
    `requests` counts those that came, which is what `retries` are a share of. `held_s` is how long answered requests
    held their seats. `recorded` are decisions about waiting, sampled. `suspects` are requests that may have ended an
    engine."""

    deployment: Deployment
    seats: dict[str, Seats] = field(default_factory=dict[str, Seats])
    turns: int = 0
    requests: int = 0
    retries: Budget = field(default_factory=lambda: Budget(monotonic()))
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = monotonic
    queue: FairQueue[Queued] = field(init=False)
    shares: Shares = field(default_factory=Shares)
    held_s: Mean = field(default_factory=Mean)
    standing: Standing = field(default_factory=Standing)
    hedging: Hedging = field(default_factory=Hedging)
    recorded: deque[Admitted] = field(default_factory=lambda: deque(maxlen=RECORDED))
    suspects: Suspects = field(init=False)
    _decided: int = 0
    _deadlines: list[tuple[float, int, Queued]] = field(default_factory=list[tuple[float, int, Queued]])

    def __post_init__(self) -> None:
        policy = self.deployment.policy
        self.queue = FairQueue(policy.max_queued, policy.max_queued_bytes)
        self.suspects = Suspects(policy.failover.poison_deaths)

    def enter(self, waiter: Waiter, asking: Asking, now: float) -> Queued | None:
        """Seats the request at once, or queues it (then the ticket is returned), or raises Refusal (429 or 503)."""
        if not self.deployment.open or not self.deployment.replicas:
            raise self._closed()
        self.shares.asked(asking.key_id, asking.weight, now)
        decision = self._choose(asking)
        has_seat = decision.replica is not None and self._may_take(asking) and not (asking.at_once and decision.panic)
        if asking.suspect:
            if (refusal := self.suspects.refusal(asking.suspect, now)) is not None:
                raise refusal
            if decision.reason == NOBODY_LEFT:
                raise self._refusal(NOBODY_LEFT, code="unavailable")
            has_seat = has_seat and self.suspects.verdict(asking.suspect) != "undecided"
        if has_seat and not self.queue.waiting:
            self.queue.charge(asking)
            self._seat(waiter, asking, decision)
            return None
        if asking.at_once:
            raise self._refusal("no seat is free at once", code="unavailable")
        ticket = Queued(waiter, asking, now + self.deployment.policy.queue_timeout_s)
        if has_seat:
            # Those that wait may not take the seat, or not that one. If one of them may after all, it goes first.
            self._put(ticket, now)
            self.advance()
            return ticket if ticket.waiting else None
        self._wait(ticket, now)
        return ticket

    def has_free(self, excluded: frozenset[str]) -> bool:
        """Whether a sound replica that is none of `excluded` has a free seat now."""
        decision = self._choose(Asking(excluded=excluded))
        return decision.replica is not None and not decision.panic

    def has_other(self, excluded: frozenset[str]) -> bool:
        """Whether a replica that is none of `excluded` takes connections, as far as we know."""
        return any(
            not (one.refusing or one.replica.draining or one.replica.name in excluded) for one in self.seats.values()
        )

    def take_retry(self, now: float) -> bool:
        """Whether a request may be sent once more; counts it."""
        limits = self.deployment.policy.failover
        filled = self.retries.filled(self.requests, now, limits.retry_share, limits.retries_per_s)
        left = filled.spent()
        self.retries = left or filled
        return left is not None

    def learn(self, seats: Seats, event: Event, now: float, chance: float) -> None:
        """How a replica fared with a request, for its breaker; `chance` as `breaker.learned` takes it."""
        seats.breaker = learned(seats.breaker, event, now, self.deployment.policy.failover, chance)

    def leave(self, seats: Seats, result: Result, asking: Asking) -> None:
        """Give a seat back, and say what was learned; the next in the queue gets one."""
        concurrency = seats.concurrency
        if concurrency is not None and (result.first_delta_s or seats.in_flight > concurrency.floor):
            concurrency.left(seats.in_flight, result, self.clock())
        seats.in_flight -= 1
        if asking.suspect and seats.suspects:
            seats.suspects -= 1
        self.shares.gave(asking.key_id)
        if result.kind == "answered":
            if result.held_s:
                self.held_s.add(result.held_s)
            if result.tokens:
                self.queue.settle(asking, result.tokens)
        elif result.kind == "failed":
            self.queue.settle(asking, 0)
        if self.queue.waiting:
            self.advance()

    def advance(self) -> None:
        """Seat those who wait while there are seats; turn them away where the route has closed, or every replica has
        failed them."""
        while self.queue.waiting:
            if not self.deployment.open or not self.deployment.replicas:
                self._turn_all_away()
                return
            ticket = self.queue.next(self._may_go)
            if ticket is None:
                return
            decision = self._choose(ticket.asking)
            poison = self.suspects.refusal(ticket.asking.suspect, monotonic()) if ticket.asking.suspect else None
            if poison is not None:
                self.queue.drop(ticket)
                ticket.waiter.not_seated(poison)
            elif decision.replica is None:
                self.queue.drop(ticket)
                ticket.waiter.not_seated(self._refusal(decision.reason, code="unavailable"))
            else:
                self.queue.take(ticket)
                self._seat(ticket.waiter, ticket.asking, decision)

    def withdraw(self) -> list[Queued]:
        """Everyone who waits leaves the queue, in its order: to wait at another door."""
        waiting: list[Queued] = []
        while (ticket := self.queue.next(lambda one: True)) is not None:
            self.queue.drop(ticket)
            waiting.append(ticket)
        return waiting

    def forget(self, ticket: Queued) -> None:
        """Nobody waits with this ticket any more: its place in the queue is free."""
        if ticket.waiting:
            self.queue.drop(ticket)

    def expire(self, now: float) -> None:
        """Turn away those whose deadline has passed. A replica that refused a connection is tried again after this
        look."""
        for seats in self.seats.values():
            seats.refusing = False
            if seats.breaker is not CLOSED:
                seats.breaker = stepped(seats.breaker, now)
            seats.look(now)
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].waiting):
            ticket = heappop(self._deadlines)[2]
            if ticket.waiting:
                self.queue.drop(ticket)
                waited_s = self.deployment.policy.queue_timeout_s
                ticket.waiter.not_seated(self._refusal(f"waited {waited_s:g} s for a free replica", code="unavailable"))
        self.suspects.tidy(now)
        self.standing.look(bool(self.queue.waiting), now)
        self.shares.tidy(now, self._places())
        self.queue.tidy()
        self.advance()

    def lost(self, seats: Seats, fingerprint: bytes, now: float, *, sent_as: SentAs, pieces: int) -> None:
        """A connection was lost in the middle of this request. One that drains may cut what it still has."""
        if seats.replica.draining:
            return
        self.suspects.lost(seats.launch, fingerprint, now, sent_as=sent_as, pieces=pieces)
        if self.seats.get(seats.replica.name) is not seats:
            self.suspects.died(seats.launch, now)

    def pass_by(self, seats: Seats) -> bool:
        """The isolated suspect has come further than where it was lost: whether another one may come beside it now."""
        if seats.suspects:
            seats.suspects -= 1
            self.advance()
        return True

    def retry_after_s(self) -> int:
        """When it is worth trying again: the queue ÷ the rate at which seats fall free."""
        least_s = self.deployment.policy.retry_after_s
        return retry_after_s(self.queue.waiting, self._places(), self.held_s.value, self.jitter(), least_s)

    # Waiting.

    def _wait(self, ticket: Queued, now: float) -> None:
        """Raises Refusal where it may not. Whoever has to go for it is told last, when all is in order here: what that
        sets off may ask at this door again."""
        queue, asking = self.queue, ticket.asking
        self.standing.look(bool(queue.waiting), now)
        admitted = admit(self._entry(asking, now))
        displaced = queue.make_room(asking) if admitted.verdict == "displace" else []
        if displaced is None:
            admitted = admit(msgspec.structs.replace(admitted.entry, room="none"))
        self._record(admitted)
        ticket.admitted = admitted
        if admitted.verdict == "refuse":
            raise self._too_many(admitted)
        self._put(ticket, now)
        for victim in displaced or ():
            victim.waiter.not_seated(self._displaced(victim, asking))

    def _put(self, ticket: Queued, now: float) -> None:
        self.queue.put(ticket)
        self.standing.look(True, now)
        self._decided += 1
        heappush(self._deadlines, (ticket.deadline, self._decided, ticket))
        if len(self._deadlines) > 2 * self.queue.waiting + 64:
            self._deadlines = [one for one in self._deadlines if one[2].waiting]
            heapify(self._deadlines)

    def _entry(self, asking: Asking, now: float) -> Entry:
        queue, policy = self.queue, self.deployment.policy
        fits = queue.fits(asking)
        held = queue.held(asking)
        places = self._places()
        return Entry(
            waiting=queue.waiting,
            ahead=queue.ahead(asking),
            held=held,
            keys_waiting=queue.keys_waiting(asking.priority) + (0 if held else 1),
            # What is kept for others serves nobody who has more than a share.
            seats=places - self._kept_from(asking, places),
            held_s=self.held_s.value,
            standing_s=self.standing.lasted_s(now),
            room="free" if fits else "taken" if queue.heaviest_against(asking) is not None else "none",
            queue_timeout_s=policy.queue_timeout_s,
            overload_wait_s=policy.overload_wait_s,
            retry_after_s=policy.retry_after_s,
            jitter=self.jitter(),
        )

    def _record(self, admitted: Admitted) -> None:
        self._decided += 1
        if self._decided % RECORD_EVERY == 0:
            self.recorded.append(admitted)

    # Refusals.

    def _closed(self) -> Refusal:
        reason = self.deployment.reason or "no replica is ready"
        wait_s = self.deployment.policy.retry_after_s
        return unavailable(f"{self.deployment.name!r} is not ready: {reason}", retry_after_s=wait_s)

    def _turn_all_away(self) -> None:
        while (ticket := self.queue.next(lambda one: True)) is not None:
            self.queue.drop(ticket)
            ticket.waiter.not_seated(self._closed())

    def _too_many(self, admitted: Admitted) -> Refusal:
        entry = admitted.entry
        text = f"{self.deployment.name!r}: {admitted.reason}: {entry.waiting} requests wait"
        if admitted.status == 429:
            text += f", {entry.held} of them with this key"
        if admitted.expected_s:
            text += f", about {admitted.expected_s:.0f} s"
        code = "over_share" if admitted.status == 429 else "overloaded"
        refusal = Refusal(admitted.status, text, code=code, retry_after_s=admitted.retry_after_s)
        refusal.admitted = admitted
        return refusal

    def _displaced(self, victim: Queued, newcomer: Asking) -> Refusal:
        if victim.asking.priority != newcomer.priority:
            return self._refusal("the queue is full, and others go first", code="overloaded")
        refusal = self._refusal("the queue is full, and this key has the most in it", code="over_share")
        refusal.status = 429
        return refusal

    def _refusal(self, reason: str, code: str) -> Refusal:
        return unavailable(f"{self.deployment.name!r}: {reason}", retry_after_s=self.retry_after_s(), code=code)

    # Seats.

    def _places(self) -> int:
        return sum([one.limit for one in self.seats.values() if not one.replica.draining])

    def _may_go(self, ticket: Queued) -> bool:
        if suspect := ticket.asking.suspect:
            verdict = self.suspects.verdict(suspect)
            if verdict in ("convicted", "undecided"):
                return verdict == "convicted"
        decision = self._choose(ticket.asking)
        if decision.replica is None:
            return decision.reason == NOBODY_LEFT
        return self._may_take(ticket.asking)

    def _may_take(self, asking: Asking) -> bool:
        """Whether the key may have a free seat: while several are active, some are for those below their share."""
        if len(self.shares) < 2:
            return True
        places = self._places()
        kept = self._kept_from(asking, places)
        if not kept:
            return True
        taken = sum([min(one.in_flight, one.limit) for one in self.seats.values()])
        return places - taken > kept

    def _kept_from(self, asking: Asking, places: int) -> int:
        """How many of the free seats are not for this key."""
        most = int(places * self.deployment.policy.reserved_seats)
        if not most or self.shares.is_below(asking.key_id, places):
            return 0
        return min(most, self.shares.kept_from(asking.key_id))

    def _choose(self, asking: Asking) -> Decision:
        excluded = asking.excluded
        # A list first: a generator costs twice as much, and this runs for every request.
        candidates = [one.candidate(excluded) for one in self.seats.values() if not one.replica.draining]
        if asking.suspect:
            candidates = self._for_suspect(candidates)
        return choose(tuple(candidates), self.turns)

    def _for_suspect(self, candidates: list[Candidate]) -> list[Candidate]:
        """There is no place for a suspect where another one is, nor where one was a moment ago if that may have ended
        it. Where it has, whoever listens there next is another launch, of which we have not heard yet."""
        seen: list[Candidate] = []
        for one in candidates:
            seats = self.seats[one.replica]
            if self.suspects.is_dead(seats.launch):
                one = msgspec.structs.replace(one, barred="excluded")
            elif seats.suspects or self.suspects.is_doubted(seats.launch):
                one = msgspec.structs.replace(one, max_in_flight=0)
            seen.append(one)
        return seen

    def _seat(self, waiter: Waiter, asking: Asking, decision: Decision) -> None:
        assert decision.replica is not None
        self.turns += 1
        seats = self.seats[decision.replica]
        seats.in_flight += 1
        if seats.breaker is not CLOSED:
            seats.breaker = probed(seats.breaker)
        self.shares.took(asking.key_id)
        if asking.suspect:
            seats.suspects += 1
        waiter.seated(seats, decision)

    def update(self, deployment: Deployment) -> list[Pool]:
        """Take in a new topology; returns the pools of launches that are gone, for the caller to close."""
        limit = deployment.policy.failover.poison_deaths
        if limit != self.suspects.limit or _is_other_engine(self.deployment, deployment):
            self.suspects = Suspects(limit)
        self.deployment = deployment
        self.queue.most, self.queue.most_bytes = deployment.policy.max_queued, deployment.policy.max_queued_bytes
        fresh: dict[str, Seats] = {}
        for replica in deployment.replicas:
            known = self.seats.get(replica.name)
            if known is not None and known.replica.launch == replica.launch:
                fresh[replica.name] = known
            else:
                fresh[replica.name] = Seats(replica, Pool(replica.address))
            fresh[replica.name].update(replica, deployment.policy)
        gone = [one for name, one in self.seats.items() if fresh.get(name) is not one]
        self.seats = fresh
        for one in gone:
            if not one.replica.draining:
                self.suspects.died(one.launch, monotonic())
        self.advance()
        return [one.pool for one in gone]


def _is_other_engine(before: Deployment, now: Deployment) -> bool:
    """What ended the one need not end the other."""
    return (before.engine, before.engine_model, before.created_at) != (now.engine, now.engine_model, now.created_at)
