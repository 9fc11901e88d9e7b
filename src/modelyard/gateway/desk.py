"""The owner's desk: what the other workers hold and wait for, by their links.

A worker that dies takes its link with it: what it held is free and what it waited for is forgotten at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import random
from time import monotonic

from modelyard.gateway.admission import Admission, Queued
from modelyard.gateway.breaker import CLOSED
from modelyard.gateway.group_wire import (
    PROTOCOL,
    Ask,
    Declared,
    Forget,
    Frames,
    Granted,
    HasEnded,
    Held,
    Hello,
    Holding,
    Learned,
    Leave,
    Members,
    NotSeated,
    Settle,
    ToOwner,
)
from modelyard.gateway.holdings import HeldReservations, HeldSeats, Launch
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.shared_accounts import SharedAccounts
from modelyard.gateway.shared_door import OfAnother, SharedDoor
from modelyard.records.decision import Decision
from modelyard.records.topology import Policy


class Desk:
    """`doors` and `accounts` are this worker's own, which are everyone's now. `look` reads topology and keys anew:
    another worker may have read them first. `alone` while no worker is linked. While `is_counting` nobody gets
    anything: what others hold is not known yet, and `expected` of them are to be heard."""

    def __init__(
        self,
        doors: Mapping[str, Admission],
        accounts: SharedAccounts,
        look: Callable[[], None],
        on_declared: Callable[[], None],
        expected: int,
    ) -> None:
        self.doors, self.accounts, self.look = doors, accounts, look
        self._on_declared, self._expected = on_declared, expected
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
        self.tell_members()

    def went(self, link: Link) -> None:
        self.links.discard(link)
        if not self.links:
            self.alone.set()
        self.tell_members()

    def _members(self) -> int:
        """The others. Who ends while it still counts must not make the next owner forget those that did not find it in
        time: their seats would be given twice."""
        return max(len(self.links), self._expected) if self.is_counting else len(self.links)

    def tell_members(self) -> None:
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

    def no_longer(self, link: Link, id: int) -> None:
        """Nobody waits for what was to come later."""
        self._early = [(one, ask) for one, ask in self._early if one is not link or ask.id != id]

    def door(self, deployment: str) -> Admission | None:
        door = self.doors.get(deployment)
        if door is None:
            self.look()
            door = self.doors.get(deployment)
        return door

    def know(self, node: str) -> None:
        """The key or team: another worker may have read of it first."""
        if not self.accounts.knows(node):
            self.look()

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
        self._seats = HeldSeats()
        self._reserved = HeldReservations(desk.accounts)
        self.has_declared = False

    def heard(self, message: object) -> None:
        match message:
            case Ask():
                self.ask(message)
            case Leave():
                self._leave(message)
            case Settle(request_id, tokens, cost_pico):
                self._reserved.settle(request_id, tokens, cost_pico)
            case Forget():
                self._forget(message)
            case Learned():
                self._learn(message)
            case Holding():
                self._hold(message)
            case Held(wanted):
                self._reserved.hold(wanted)
            case HasEnded(ended):
                self._desk.accounts.has_ended(ended, self._reserved.journal, monotonic())
            case Declared():
                self.has_declared = True
                self._desk.has_declared()
            case Hello(protocol, journal) if protocol == PROTOCOL:
                self._reserved.journal = journal
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
            if ask.asking.wanted is not None:
                desk.know(ask.asking.wanted.node)
                self._reserved.reserve(ask.asking.wanted)
            ticket = door.enter(waiter, ask.asking, ask.at)
        except Refusal as refusal:
            self.turn_away(ask.id, refusal)
            return
        if ticket is not None:
            self._waiting[ask.id] = (door, ticket)

    def grant(self, ask: Ask, door: Admission, seats: Seats, decision: Decision) -> None:
        self._waiting.pop(ask.id, None)
        replica, key_id = seats.replica, ask.asking.key_id
        self._seats.count(door, seats, key_id, 1, suspects=bool(ask.asking.suspect))
        lines = self._reserved.lines(ask.asking.wanted)
        self.send(Granted(ask.id, door.deployment.name, replica.name, replica.launch, key_id, decision, lines))

    def turn_away(self, id: int, refusal: Refusal) -> None:
        self._waiting.pop(id, None)
        self.send(NotSeated.of(id, refusal))

    def _hold(self, holding: Holding) -> None:
        found = self._desk.seats(holding.deployment, holding.replica, holding.launch)
        if found is not None:
            door, seats = found
            seats.in_flight += holding.seats
            if isinstance(door, SharedDoor):
                door.count_share(holding.key_id, holding.seats, monotonic())
            self._seats.count(door, seats, holding.key_id, holding.seats)

    def _leave(self, leave: Leave) -> None:
        launch, asking = Launch(leave.deployment, leave.replica, leave.launch), leave.asking
        held = self._seats.take(launch, asking.key_id, suspects=bool(asking.suspect))
        if held is None:
            return
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
        if self._desk.is_counting:
            self._desk.no_longer(self, forget.id)
        waiting = self._waiting.pop(forget.id, None)
        if waiting is not None:
            door, ticket = waiting
            door.forget(ticket)

    def ended(self) -> None:
        """The worker is gone, and with it all that it asked for and held."""
        self._drop()
        self._reserved.free()
        self._seats.free()
        self._desk.went(self)

    def give_up(self) -> None:
        """Forget what it holds: that is counted by another owner now."""
        self._drop()
        self._reserved.forget()
        self._seats.forget()
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
