"""A deployment's door where several workers share it: one of them owns it, the others ask that one.

In the owner it is an admission like any other, and `in_flight` counts everyone's seats. In the others `seats` are this
worker's own: its connections to the launch, and how many requests it has there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from modelyard.gateway.admission import Admission, Asking, Queued, Result, Seats, Waiter
from modelyard.records.decision import Decision


@dataclass(slots=True, eq=False)
class Place(Queued):
    """A request that waits for the owner's word; the ticket that its holder has. While it waits at this worker's own
    admission, `inner` is the ticket there."""

    id: int = 0
    door: SharedDoor = field(kw_only=True)
    at: float = 0.0
    inner: Queued | None = None


class Owner(Protocol):
    """Where the door's questions go. `is_here`: this worker owns every door, and knows what the others hold."""

    is_here: bool

    def ask(self, door: SharedDoor, waiter: Waiter, asking: Asking, now: float) -> Queued: ...

    def left(self, door: SharedDoor, seats: Seats, result: Result) -> None: ...

    def took_no_connection(self, door: SharedDoor, seats: Seats) -> None: ...

    def forget(self, door: SharedDoor, ticket: Queued) -> None: ...

    def expire(self, door: SharedDoor, now: float) -> None: ...


# `super()` does not work in a dataclass with slots: the class that it would look in is not the one that was made.
@dataclass(slots=True)
class SharedDoor(Admission):
    owner: Owner = field(kw_only=True)

    def enter(self, waiter: Waiter, asking: Asking, now: float) -> Queued | None:
        if self.owner.is_here:
            return Admission.enter(self, waiter, asking, now)
        return self.owner.ask(self, waiter, asking, now)

    def leave(self, seats: Seats, result: Result) -> None:
        if self.owner.is_here:
            Admission.leave(self, seats, result)
        else:
            seats.in_flight -= 1
            self.owner.left(self, seats, result)

    def refused(self, seats: Seats) -> bool:
        self.owner.took_no_connection(self, seats)
        return Admission.refused(self, seats)

    def forget(self, ticket: Queued) -> None:
        self.owner.forget(self, ticket)

    def expire(self, now: float) -> None:
        self.owner.expire(self, now)
        Admission.expire(self, now)

    def granted(self, waiter: Waiter, seats: Seats, decision: Decision) -> None:
        """The owner has given this worker a seat."""
        seats.in_flight += 1
        waiter.seated(seats, decision)
