"""Several workers, one owner: what happens when it ends, and what the others tell the next one.

They notice the owner's end by their link's end, and one of them has the lock a moment later. To the next owner each
declares the seats and the reservations that it holds, and asks again for those that it waits for; nothing is given
before all have declared, or RECOUNT_WITHIN_S has passed. Clients notice a pause of milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

from modelyard.gateway.admission import Admission, Asking, Queued, Result, Waiter
from modelyard.gateway.breaker import Event
from modelyard.gateway.desk import Desk
from modelyard.gateway.group_wire import (
    BEAT_S,
    PROTOCOL,
    Declared,
    HasEnded,
    Held,
    Hello,
    Holding,
    Learned,
    Leave,
    Settle,
    ToOwner,
)
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.link_to_owner import LinkToOwner, dial
from modelyard.gateway.ownership import Ownership
from modelyard.gateway.places import RETRY_EVERY_S, Places
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.seeding import Seeding
from modelyard.gateway.shared_accounts import Ended, SharedAccounts
from modelyard.gateway.shared_door import SharedDoor
from modelyard.records.topology import Deployment

# An upper bound for how long a worker that lives takes to find the next owner; caps may be exceeded by what a slower
# one holds, until that has ended.
RECOUNT_WITHIN_S = 0.5
# The owner turns away who waited too long; only if its word does not come do we.
WORD_WITHIN_S = 1.0
SILENT_RETRY_S = 1


class Group:
    """This worker's part in the group of `workers`. It is the owner, or linked to the owner, or neither for a moment.
    `doors` and `journal` are this worker's; `look` reads topology and keys anew."""

    def __init__(
        self,
        address: Path,
        workers: int,
        doors: Mapping[str, Admission],
        keyring: Keyring,
        seeding: Seeding,
        journal: JournalWriter,
        look: Callable[[], None],
    ) -> None:
        self.is_here, self.workers = False, workers
        self.accounts = SharedAccounts(keyring, seeding, journal, self)
        self._doors, self._journal, self._look = doors, journal, look
        self._ownership = Ownership(address)
        self._places = Places(self.accounts, self._send, look)
        self._members = workers - 1
        self._link: LinkToOwner | None = None
        self._desk: Desk | None = None
        self._server: asyncio.Server | None = None
        self._may_own = True
        self._recounted, self._over = asyncio.Event(), asyncio.Event()

    @property
    def is_linked(self) -> bool:
        """Another worker owns, and knows what we hold."""
        return self._link is not None

    def door(self, deployment: Deployment) -> Admission:
        return SharedDoor(deployment, owner=self)

    def _send(self, message: ToOwner) -> None:
        if self._link is not None:
            self._link.send(message)

    # The doors' and the accounts' side.

    def ask(self, door: SharedDoor, waiter: Waiter, asking: Asking, now: float) -> Queued:
        """Raises Refusal while the owner does not answer."""
        if self._link is not None and self._link.is_silent:
            raise _silent()
        return self._places.ask(door, waiter, asking, now)

    def left(self, door: SharedDoor, seats: Seats, result: Result, asking: Asking) -> None:
        replica = seats.replica
        self._send(Leave(door.deployment.name, replica.name, replica.launch, result, asking))

    def learned(self, door: SharedDoor, seats: Seats, event: Event) -> None:
        replica = seats.replica
        self._send(Learned(door.deployment.name, replica.name, replica.launch, event, seats.refusing))

    def forget(self, door: SharedDoor, ticket: Queued) -> None:
        self._places.forget(door, ticket)

    def expire(self, door: SharedDoor, now: float) -> None:
        self._places.expire(door, now - WORD_WITHIN_S if self._link is not None else now)

    def settled(self, ended: Ended) -> None:
        self._send(Settle(ended.wanted.request_id, ended.tokens, ended.cost_pico))

    # Who owns.

    async def keep_forever(self) -> None:
        """Own, or be linked to the owner, as long as this worker lives."""
        while True:
            if self._may_own and self._ownership.take():
                await self._own()
                await self._recount()
                await self._beat_until_over()
                continue
            link = await dial(self._ownership.address, self._places, self._hear_members)
            if link is None:
                await asyncio.sleep(RETRY_EVERY_S)
                continue
            self._declare(link)
            await link.answered(RECOUNT_WITHIN_S / 2)
            await link.watch(self._owner_is_silent)
            self._link = None

    async def _own(self) -> None:
        self._recounted.clear()
        now = monotonic()
        # The journal is read after the lock was had and before anybody is heard: what ends later is told.
        self._look()
        self.accounts.begin_to_own(now)
        for door in self._doors.values():
            assert isinstance(door, SharedDoor)
            door.begin_to_own(now)
        self._desk = Desk(self._doors, self.accounts, self._look, self._hear_declared, self._members)
        sock = self._ownership.bind()
        server = await asyncio.get_running_loop().create_unix_server(self._desk.link, sock=sock)
        if self._may_own:
            self._server = server
        else:
            # Told to step down meanwhile: whoever has dialled already dials again.
            server.close()

    def _hear_declared(self) -> None:
        if self._desk is not None and self._desk.declared() >= self._members:
            self._recounted.set()

    def _hear_members(self, count: int) -> None:
        """How many workers the present owner is linked to: as many, but us, the next one has to hear from."""
        self._members = count - 1

    async def _recount(self) -> None:
        """Until the others have said what they hold; then we own, and whoever waits here enters."""
        if self._members > 0 and self._may_own:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._recounted.wait(), RECOUNT_WITHIN_S)
        desk = self._desk
        if desk is None:
            return
        self.is_here = True
        desk.counted()
        self._places.enter_here(monotonic())

    async def _beat_until_over(self) -> None:
        """The others notice by it that we are not stopped."""
        while not self._over.is_set():
            if self._desk is not None:
                self._desk.tell_members()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), BEAT_S)

    def _owner_is_silent(self) -> None:
        """Yard ends it before long; who waits here is not kept waiting for that."""
        self._places.refuse_all(_silent)

    def _declare(self, link: LinkToOwner) -> None:
        """Say what we hold and what we wait for."""
        self._link = link
        link.send(Hello(PROTOCOL, self._journal.name))
        for name, door in self._doors.items():
            assert isinstance(door, SharedDoor)
            for hold, count in door.own.items():
                link.send(Holding(name, *hold, count))
        for wanted in self.accounts.held():
            link.send(Held(wanted))
        for ended in self.accounts.ended():
            link.send(HasEnded(ended))
        link.send(Declared())
        self._places.ask_all()

    # The end.

    async def until_alone(self) -> None:
        """If we own: until no other worker needs us."""
        if self._desk is not None:
            await self._desk.alone.wait()

    def step_down(self) -> None:
        """Own nothing any more, and never again: another process does. Who waits here waits there."""
        self._may_own = False
        desk, self._desk = self._desk, None
        if desk is None:
            return
        self.is_here = False
        desk.close()
        self.accounts.give_up()
        for door in self._doors.values():
            assert isinstance(door, SharedDoor)
            for ticket in door.withdraw():
                self._places.move(door, ticket)
        if self._server is not None:
            self._server.close()
        self._ownership.release()
        self._over.set()


def _silent() -> Refusal:
    text = "the gateway's worker that gives out seats does not answer, and is being replaced"
    return unavailable(text, retry_after_s=SILENT_RETRY_S, code="owner_silent")
