"""Who goes when: per replica a cap on requests in flight, per deployment a bounded queue with a deadline.

State without I/O: nothing here sends a byte. A seat is a place at one launch of one replica; whoever holds one gives it
back exactly once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

from modelyard.gateway.balance import NOBODY_LEFT, choose
from modelyard.gateway.breaker import CLOSED, probed, stepped
from modelyard.gateway.budget import Budget
from modelyard.gateway.refusals import unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.upstream import Pool
from modelyard.records.decision import Decision
from modelyard.records.topology import Deployment


@dataclass(frozen=True, slots=True)
class Asking:
    """What a door needs to know of a request. `tokens` is what it may cost: prompt, estimated, and the longest answer.
    A higher `priority` goes first. `excluded` are replicas that have failed it already."""

    key_id: str = ""
    priority: int = 0
    tokens: int = 0
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Result:
    """What a seat's holder learned of the replica. `first_delta_s` counts from when it was seated; 0 if none came.
    "withdrawn" says nothing of the replica: the client left, or nothing was sent."""

    kind: Literal["answered", "failed", "withdrawn"]
    first_delta_s: float = 0.0
    tokens: int = 0


WITHDRAWN = Result("withdrawn")


class Waiter(Protocol):
    """A request that waits for a seat. Exactly one of the two is called, once, unless it leaves the queue itself."""

    def seated(self, seats: Seats, decision: Decision) -> None: ...

    def not_seated(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Queued:
    waiter: Waiter
    asking: Asking
    deadline: float


@dataclass(slots=True)
class Admission:
    """One deployment's door. `deployment` is replaced as the topology changes; seats live as long as their launch.
    `requests` counts those that came, which is what `retries` are a share of."""

    deployment: Deployment
    seats: dict[str, Seats] = field(default_factory=dict[str, Seats])
    queue: deque[Queued] = field(default_factory=deque[Queued])
    turns: int = 0
    requests: int = 0
    retries: Budget = field(default_factory=lambda: Budget(monotonic()))

    def enter(self, waiter: Waiter, asking: Asking, now: float) -> Queued | None:
        """Seats the request at once, or queues it (then the ticket is returned), or raises Refusal (503)."""
        deployment = self.deployment
        if not deployment.open or not deployment.replicas:
            reason = deployment.reason or "no replica is ready"
            raise unavailable(
                f"{deployment.name!r} is not ready: {reason}", retry_after_s=deployment.policy.retry_after_s
            )
        if not self.queue:
            decision = self._choose(asking)
            if decision.replica is not None:
                self._seat(waiter, decision.replica, decision)
                return None
        if len(self.queue) >= deployment.policy.max_queued:
            raise unavailable(
                f"{deployment.name!r} has {len(self.queue)} requests waiting already",
                retry_after_s=deployment.policy.retry_after_s,
                code="overloaded",
            )
        ticket = Queued(waiter, asking, now + deployment.policy.queue_timeout_s)
        self.queue.append(ticket)
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

    def leave(self, seats: Seats, result: Result) -> None:
        """Give a seat back, and say what was learned; the next in the queue gets one."""
        seats.in_flight -= 1
        if self.queue:
            self.advance()

    def advance(self) -> None:
        """Seat those who wait while there are seats; turn them away where the route has closed. One whose replica is
        none that is free lets others pass."""
        passed = 0
        while passed < len(self.queue):
            ticket = self.queue[passed]
            if not self.deployment.open or not self.deployment.replicas:
                self.queue.popleft()
                ticket.waiter.not_seated(self.deployment.reason or "no replica is ready")
                continue
            decision = self._choose(ticket.asking)
            if decision.replica is not None:
                del self.queue[passed]
                self._seat(ticket.waiter, decision.replica, decision)
                passed = 0
            elif decision.reason == NOBODY_LEFT:
                del self.queue[passed]
                ticket.waiter.not_seated(NOBODY_LEFT)
            elif ticket.asking.excluded:
                passed += 1
            else:
                return

    def forget(self, ticket: Queued) -> None:
        """Nobody waits with this ticket any more: its place in the queue is free."""
        if ticket in self.queue:
            self.queue.remove(ticket)

    def expire(self, now: float) -> None:
        """Turn away those whose deadline has passed; the queue is in order of arrival, so of deadline. A replica that
        refused a connection is tried again after this look."""
        for seats in self.seats.values():
            seats.refusing = False
            if seats.breaker is not CLOSED:
                seats.breaker = stepped(seats.breaker, now)
        while self.queue and self.queue[0].deadline <= now:
            self.queue.popleft().waiter.not_seated(
                f"waited {self.deployment.policy.queue_timeout_s:g} s for a free replica"
            )
        self.advance()

    def _choose(self, asking: Asking) -> Decision:
        excluded = asking.excluded
        # A list first: a generator costs twice as much, and this runs for every request.
        candidates = [one.candidate(excluded) for one in self.seats.values() if not one.replica.draining]
        return choose(tuple(candidates), self.turns)

    def _seat(self, waiter: Waiter, replica: str, decision: Decision) -> None:
        self.turns += 1
        seats = self.seats[replica]
        seats.in_flight += 1
        if seats.breaker is not CLOSED:
            seats.breaker = probed(seats.breaker)
        waiter.seated(seats, decision)

    def update(self, deployment: Deployment) -> list[Pool]:
        """Take in a new topology; returns the pools of launches that are gone, for the caller to close."""
        self.deployment = deployment
        gone: list[Pool] = []
        fresh: dict[str, Seats] = {}
        for replica in deployment.replicas:
            known = self.seats.get(replica.name)
            if known is not None and known.replica.launch == replica.launch:
                known.replica = replica
                fresh[replica.name] = known
            else:
                fresh[replica.name] = Seats(replica, Pool(replica.address))
        gone = [one.pool for name, one in self.seats.items() if fresh.get(name) is not one]
        self.seats = fresh
        self.advance()
        return gone
