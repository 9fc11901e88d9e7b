"""A deployment's door where several workers share it: one of them owns it, the others ask that one.

In the owner it is an admission like any other, and `in_flight` counts everyone's seats. In the others `seats` are this
worker's own: its connections to the launch, and how many requests it has there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from modelyard.gateway.admission import Admission, Asking, Queued, Result, Waiter
from modelyard.gateway.breaker import Event
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.seats import Seats
from modelyard.gateway.shares import Shares
from modelyard.records.decision import Decision


class Hold(NamedTuple):
    """At which launch, for which key, a seat is held."""

    replica: str
    launch: str
    key_id: str


@dataclass(slots=True, eq=False)
class Place(Queued):
    """A request that waits for the owner's word; the ticket that its holder has. Where this worker's own admission has
    taken it in meanwhile, `inner` is the ticket there."""

    id: int = 0
    door: SharedDoor = field(kw_only=True)
    at: float = 0.0
    inner: Queued | None = None


class OfAnother:
    """What a request of another worker is at the owner's door: its seats are not this worker's."""

    def seated(self, seats: Seats, decision: Decision) -> None:
        raise NotImplementedError

    def not_seated(self, refusal: Refusal) -> None:
        raise NotImplementedError


class Owner(Protocol):
    """Where the door's questions go. `is_here`: this worker owns every door, and knows what the others hold. `workers`
    is how many share the doors."""

    is_here: bool
    workers: int

    def ask(self, door: SharedDoor, waiter: Waiter, asking: Asking, now: float) -> Queued: ...

    def left(self, door: SharedDoor, seats: Seats, result: Result, asking: Asking) -> None: ...

    def learned(self, door: SharedDoor, seats: Seats, event: Event) -> None: ...

    def forget(self, door: SharedDoor, ticket: Queued) -> None: ...

    def expire(self, door: SharedDoor, now: float) -> None: ...


# `super()` does not work in a dataclass with slots: the class that it would look in is not the one that was made.
@dataclass(slots=True)
class SharedDoor(Admission):
    """`own` counts the seats that this worker's requests hold."""

    owner: Owner = field(kw_only=True)
    own: Counter[Hold] = field(default_factory=Counter[Hold])

    def enter(self, waiter: Waiter, asking: Asking, now: float) -> Queued | None:
        if self.owner.is_here:
            return Admission.enter(self, waiter, asking, now)
        if asking.suspect:
            self._refuse_suspect(asking, now)
        return self.owner.ask(self, waiter, asking, now)

    def leave(self, seats: Seats, result: Result, asking: Asking) -> None:
        self._count(seats, asking.key_id, -1)
        if self.owner.is_here:
            Admission.leave(self, seats, result, asking)
        else:
            seats.in_flight -= 1
            self.owner.left(self, seats, result, asking)

    def _refuse_suspect(self, asking: Asking, now: float) -> None:
        """The owner knows that it is to be isolated, and not what this worker knows of it. Raises Refusal."""
        if (refusal := self.suspects.refusal(asking.suspect, now)) is not None:
            raise refusal
        if self.suspects.verdict(asking.suspect) == "undecided":
            raise self._refusal("this request may have ended the engine, which is being looked into", "unavailable")

    def pass_by(self, seats: Seats) -> bool:
        """The owner hears of it at its end."""
        return self.owner.is_here and Admission.pass_by(self, seats)

    def learn(self, seats: Seats, event: Event, now: float, chance: float) -> None:
        Admission.learn(self, seats, event, now, chance)
        if event in ("lost", "erred"):
            # The rest the owner learns by the end of a seat.
            self.owner.learned(self, seats, event)

    def take_retry(self, now: float) -> bool:
        """Of a share of this worker's own requests, and of this worker's part of what is free: all workers together
        retry no more than one alone might."""
        limits = self.deployment.policy.failover
        filled = self.retries.filled(self.requests, now, limits.retry_share, limits.retries_per_s / self.owner.workers)
        left = filled.spent()
        self.retries = left or filled
        return left is not None

    def forget(self, ticket: Queued) -> None:
        self.owner.forget(self, ticket)

    def expire(self, now: float) -> None:
        self.owner.expire(self, now)
        Admission.expire(self, now)

    def _seat(self, waiter: Waiter, asking: Asking, decision: Decision) -> None:
        assert decision.replica is not None
        if not isinstance(waiter, OfAnother):
            # Before it is seated: it may leave at once.
            self._count(self.seats[decision.replica], asking.key_id, 1)
        Admission._seat(self, waiter, asking, decision)

    def granted(self, waiter: Waiter, asking: Asking, seats: Seats, decision: Decision) -> None:
        """The owner has given this worker a seat."""
        seats.in_flight += 1
        self._count(seats, asking.key_id, 1)
        waiter.seated(seats, decision)

    def begin_to_own(self, now: float) -> None:
        """What this worker holds itself is where counting begins."""
        self.shares = Shares()
        for hold, count in self.own.items():
            self.count_share(hold.key_id, count, now)

    def count_share(self, key_id: str, count: int, now: float) -> None:
        """A key holds seats that were given by another owner; its weight comes with its next request."""
        self.shares.asked(key_id, 1.0, now)
        for _ in range(count):
            self.shares.took(key_id)

    def _count(self, seats: Seats, key_id: str, change: int) -> None:
        hold = Hold(seats.replica.name, seats.replica.launch, key_id)
        self.own[hold] += change
        if not self.own[hold]:
            del self.own[hold]
