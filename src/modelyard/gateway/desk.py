"""The owner's desk: what the other workers hold and wait for, by their links.

A worker that dies takes its link with it: what it held is free and what it waited for is forgotten at that moment."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import random
from time import monotonic

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued
from modelyard.gateway.breaker import CLOSED
from modelyard.gateway.group_wire import (
    PROTOCOL,
    Ask,
    Declared,
    Forget,
    Frames,
    Granted,
    Hello,
    Holding,
    Learned,
    Leave,
    Members,
    NotSeated,
    ToOwner,
)
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.shared_door import OfAnother, SharedDoor
from modelyard.records.decision import Decision
from modelyard.records.topology import Policy

Launch = tuple[str, str, str]


@dataclass(slots=True)
class _Held:
    """Seats of one worker at one launch, by key."""

    door: Admission
    seats: Seats
    keys: Counter[str] = field(default_factory=Counter[str])


class Desk:
    """`doors` are this worker's own, which are everyone's now. `look` reads the topology anew: another worker may have
    read it first. `alone` while no worker is linked. While `is_counting` nobody gets a seat: what others hold is not
    known yet, and `expected` of them are to be heard."""

    def __init__(
        self, doors: Mapping[str, Admission], look: Callable[[], None], on_declared: Callable[[], None], expected: int
    ) -> None:
        self.doors, self.look, self._on_declared, self._expected = doors, look, on_declared, expected
        self.links: set[Link] = set()
        self.is_counting = True
        self._is_closed = False
        self.alone = asyncio.Event()
        self.alone.set()
        self._early: list[tuple[Link, Ask]] = []

    def link(self) -> Link:
        """The protocol of a worker that has just dialled."""
        return Link(self)

    def declared(self) -> int:
        """How many workers have said what they hold."""
        return sum(link.has_declared for link in self.links)

    def came(self, link: Link) -> None:
        if self._is_closed:
            # It dialled while this desk was still open: it dials again, and finds the next owner.
            link.abort()
            return
        self.links.add(link)
        self.alone.clear()
        self._tell_members()

    def went(self, link: Link) -> None:
        self.links.discard(link)
        if not self.links:
            self.alone.set()
        self._tell_members()

    def _members(self) -> int:
        """The others. Who ends while it still counts must not make the next owner forget those that did not find it in
        time: their seats would be given twice."""
        return max(len(self.links), self._expected) if self.is_counting else len(self.links)

    def _tell_members(self) -> None:
        members = Members(self._members())
        for link in self.links:
            link.send(members)

    def has_declared(self) -> None:
        self._on_declared()

    def counted(self) -> None:
        """Everything that is held is known, or waited for long enough: seats are given from now on."""
        self.is_counting = False
        early, self._early = self._early, []
        for link, ask in early:
            if link in self.links:
                link.ask(ask)

    def later(self, link: Link, ask: Ask) -> None:
        self._early.append((link, ask))

    def door(self, deployment: str) -> Admission | None:
        door = self.doors.get(deployment)
        if door is None:
            self.look()
            door = self.doors.get(deployment)
        return door

    def seats(self, deployment: str, replica: str, launch: str) -> tuple[Admission, Seats] | None:
        """The door and the seats of a launch; None where this worker does not know it, or no longer."""
        door = self.door(deployment)
        seats = door.seats.get(replica) if door is not None else None
        if door is None or seats is None or seats.replica.launch != launch:
            return None
        return door, seats

    def close(self) -> None:
        """This worker owns nothing any more: what others hold is theirs to declare to the next owner."""
        self._is_closed = True
        self._early.clear()
        # Each of them, and this worker beside them.
        everyone = Members(self._members() + 1)
        for link in list(self.links):
            link.send(everyone)
            link.give_up()


class Link(Frames):
    """One worker's end at the owner."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(ToOwner)
        self._desk = desk
        self._waiting: dict[int, tuple[Admission, Queued]] = {}
        self._held: dict[Launch, _Held] = {}
        self.has_declared = False

    def heard(self, message: object) -> None:
        match message:
            case Ask():
                self.ask(message)
            case Leave():
                self._leave(message)
            case Forget():
                self._forget(message)
            case Learned():
                self._learn(message)
            case Holding():
                self._hold(message)
            case Declared():
                self.has_declared = True
                self._desk.has_declared()
            case Hello(protocol) if protocol == PROTOCOL:
                self._desk.came(self)
            case _:
                self.abort()

    def ask(self, ask: Ask) -> None:
        desk = self._desk
        if desk.is_counting:
            desk.later(self, ask)
            return
        door = desk.door(ask.deployment)
        if door is None:
            text = f"{ask.deployment!r} is not ready: no replica is ready"
            self.turn_away(ask.id, unavailable(text, retry_after_s=Policy().retry_after_s))
            return
        waiter = _Remote(self, ask, door)
        try:
            ticket = door.enter(waiter, ask.asking, ask.at)
        except Refusal as refusal:
            self.turn_away(ask.id, refusal)
            return
        if ticket is not None:
            self._waiting[ask.id] = (door, ticket)

    def grant(self, ask: Ask, door: Admission, seats: Seats, decision: Decision) -> None:
        self._waiting.pop(ask.id, None)
        replica = seats.replica
        self._count(door, seats, ask.asking.key_id, 1)
        key_id = ask.asking.key_id
        self.send(Granted(ask.id, door.deployment.name, replica.name, replica.launch, key_id, decision))

    def turn_away(self, id: int, refusal: Refusal) -> None:
        self._waiting.pop(id, None)
        self.send(NotSeated(id, refusal.status, refusal.message, refusal.code, refusal.retry_after_s))

    def _count(self, door: Admission, seats: Seats, key_id: str, count: int) -> None:
        launch = (door.deployment.name, seats.replica.name, seats.replica.launch)
        held = self._held.get(launch)
        if held is None or held.seats is not seats:
            held = self._held[launch] = _Held(door, seats)
        held.keys[key_id] += count

    def _hold(self, holding: Holding) -> None:
        found = self._desk.seats(holding.deployment, holding.replica, holding.launch)
        if found is not None:
            door, seats = found
            seats.in_flight += holding.seats
            if isinstance(door, SharedDoor):
                door.count_share(holding.key_id, holding.seats, monotonic())
            self._count(door, seats, holding.key_id, holding.seats)

    def _leave(self, leave: Leave) -> None:
        held = self._held.get((leave.deployment, leave.replica, leave.launch))
        key_id = leave.asking.key_id
        if held is None or held.keys[key_id] <= 0:
            return
        held.keys[key_id] -= 1
        door, seats, kind = held.door, held.seats, leave.result.kind
        if seats.breaker is not CLOSED and kind != "failed":
            # The worker knows nothing of what others have made of it, a probe of its own among that.
            door.learn(seats, kind, monotonic(), random())
        # By the admission itself: the seat was never one of this worker's own.
        Admission.leave(door, seats, leave.result, leave.asking)

    def _learn(self, learned: Learned) -> None:
        found = self._desk.seats(learned.deployment, learned.replica, learned.launch)
        if found is not None:
            door, seats = found
            seats.refusing = seats.refusing or learned.refusing
            door.learn(seats, learned.event, monotonic(), random())

    def _forget(self, forget: Forget) -> None:
        waiting = self._waiting.pop(forget.id, None)
        if waiting is not None:
            door, ticket = waiting
            door.forget(ticket)

    def ended(self) -> None:
        """The worker is gone, and with it all that it asked for and held."""
        self._drop()
        held, self._held = self._held, {}
        for one in held.values():
            for key_id in one.keys.elements():
                Admission.leave(one.door, one.seats, WITHDRAWN, Asking(key_id=key_id))
        self._desk.went(self)

    def give_up(self) -> None:
        """Forget what it holds: that is counted by another owner now."""
        self._drop()
        for held in self._held.values():
            held.seats.in_flight -= held.keys.total()
        self._held.clear()
        self.close()

    def _drop(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for door, ticket in waiting.values():
            door.forget(ticket)


class _Remote(OfAnother):
    """A request of another worker, as this worker's admission sees it."""

    __slots__ = ("_ask", "_door", "_link")

    def __init__(self, link: Link, ask: Ask, door: Admission) -> None:
        self._link, self._ask, self._door = link, ask, door

    def seated(self, seats: Seats, decision: Decision) -> None:
        self._link.grant(self._ask, self._door, seats, decision)

    def not_seated(self, refusal: Refusal) -> None:
        self._link.turn_away(self._ask.id, refusal)
