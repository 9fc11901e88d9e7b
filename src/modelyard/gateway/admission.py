"""Who goes when: per replica a cap on requests in flight, per deployment a bounded queue with a deadline.

State without I/O: nothing here sends a byte. `Seat` is a place at one launch of one replica; whoever holds a seat gives
it back exactly once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

from modelyard.gateway.balance import choose
from modelyard.gateway.refusals import unavailable
from modelyard.gateway.upstream import Pool
from modelyard.records.decision import Candidate, Decision
from modelyard.records.topology import Deployment, Replica


@dataclass(slots=True)
class Seats:
    """The places at one launch. `pool` holds its open connections; `refusing` while it took no connection lately."""

    replica: Replica
    pool: Pool
    in_flight: int = 0
    refusing: bool = False


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
    """One deployment's door. `deployment` is replaced as the topology changes; seats live as long as their launch."""

    deployment: Deployment
    seats: dict[str, Seats] = field(default_factory=dict[str, Seats])
    queue: deque[Queued] = field(default_factory=deque[Queued])
    turns: int = 0

    def enter(self, waiter: Waiter, asking: Asking, now: float) -> Queued | None:
        """Seats the request at once, or queues it (then the ticket is returned), or raises Refusal (503)."""
        deployment = self.deployment
        if not deployment.open or not deployment.replicas:
            reason = deployment.reason or "no replica is ready"
            raise unavailable(
                f"{deployment.name!r} is not ready: {reason}", retry_after_s=deployment.policy.retry_after_s
            )
        if not self.queue and self._seat(waiter):
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

    def refused(self, seats: Seats) -> bool:
        """`seats` took no connection: until the next look nothing new goes there. Whether another replica takes it."""
        seats.refusing = True
        return any(not one.refusing for one in self._usable())

    def leave(self, seats: Seats, result: Result) -> None:
        """Give a seat back, and say what was learned; the next in the queue gets one."""
        seats.in_flight -= 1
        if self.queue:
            self.advance()

    def advance(self) -> None:
        """Seat those who wait while there are seats; turn them away where the route has closed."""
        while self.queue:
            ticket = self.queue[0]
            if not self.deployment.open or not self.deployment.replicas:
                self.queue.popleft()
                ticket.waiter.not_seated(self.deployment.reason or "no replica is ready")
            elif self._free():
                self.queue.popleft()
                self._seat(ticket.waiter)
            else:
                return

    def withdraw(self) -> list[Queued]:
        """Everyone who waits leaves the queue, in its order: to wait at another door."""
        waiting = list(self.queue)
        self.queue.clear()
        return waiting

    def forget(self, ticket: Queued) -> None:
        """Nobody waits with this ticket any more: its place in the queue is free."""
        if ticket in self.queue:
            self.queue.remove(ticket)

    def expire(self, now: float) -> None:
        """Turn away those whose deadline has passed; the queue is in order of arrival, so of deadline. A replica that
        refused a connection is tried again after this look."""
        for seats in self.seats.values():
            seats.refusing = False
        while self.queue and self.queue[0].deadline <= now:
            self.queue.popleft().waiter.not_seated(
                f"waited {self.deployment.policy.queue_timeout_s:g} s for a free replica"
            )
        self.advance()

    def _usable(self) -> list[Seats]:
        """Those that take requests; if all refuse connections, all of them: the last one is never taken away."""
        seats = self.seats.values()
        usable = [one for one in seats if not (one.refusing or one.replica.draining)]
        return usable or [one for one in seats if not one.replica.draining]

    def _free(self) -> bool:
        return any(one.in_flight < one.replica.max_in_flight for one in self._usable())

    def _seat(self, waiter: Waiter) -> bool:
        # A list first: a generator costs twice as much, and this runs for every request.
        candidates = [
            Candidate(replica=one.replica.name, in_flight=one.in_flight, max_in_flight=one.replica.max_in_flight)
            for one in self._usable()
        ]
        decision = choose(tuple(candidates), self.turns)
        if decision.replica is None:
            return False
        self.turns += 1
        seats = self.seats[decision.replica]
        seats.in_flight += 1
        waiter.seated(seats, decision)
        return True

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
