"""Several workers, one owner: who that is, how the others reach it, and what happens when it ends.

The owner is the worker that holds a lock which the kernel frees when its holder ends, however it ends. Whoever holds it
binds the socket that the others dial. They notice its end by their link's end, and one of them has the lock a moment
later. To the next owner each declares the seats that it holds and asks again for those that it waits for; nothing is
seated before all have declared, or RECOUNT_WITHIN_S has passed. Clients notice a pause of milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Result, Waiter
from modelyard.gateway.breaker import Event
from modelyard.gateway.desk import Desk
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
    ToWorker,
)
from modelyard.gateway.refusals import Refusal, unavailable
from modelyard.gateway.seats import Seats
from modelyard.gateway.shared_door import Place, SharedDoor
from modelyard.records.topology import Deployment

RETRY_EVERY_S = 0.01
# An upper bound for how long a worker that lives takes to find the next owner; caps may be exceeded by what a slower
# one holds, until that has ended.
RECOUNT_WITHIN_S = 0.25
# The owner turns away who waited too long; only if its word does not come do we.
WORD_WITHIN_S = 1.0


class Group:
    """This worker's part in the group. It is the owner, or linked to the owner, or neither for a moment. `look` reads
    the topology anew."""

    def __init__(self, address: Path, workers: int, doors: Mapping[str, Admission], look: Callable[[], None]) -> None:
        self.is_here, self.workers = False, workers
        self._address, self._doors = address, doors
        self._members = workers - 1
        self._places: dict[int, Place] = {}
        # Tickets of an admission that was ours, and the places that took their place.
        self._moved: dict[Queued, Place] = {}
        self._entered: dict[Queued, Place] = {}
        self._asked = 0
        self._link: _LinkToOwner | None = None
        self._desk: Desk | None = None
        self._server: asyncio.Server | None = None
        self._lock = -1
        self._may_own = True
        self._recounted, self._over = asyncio.Event(), asyncio.Event()
        self.look = look

    @property
    def is_linked(self) -> bool:
        """Another worker owns, and knows what we hold."""
        return self._link is not None

    def door(self, deployment: Deployment) -> Admission:
        return SharedDoor(deployment, owner=self)

    # The doors' side.

    def ask(self, door: SharedDoor, waiter: Waiter, asking: Asking, now: float) -> Queued:
        self._asked += 1
        deadline = now + door.deployment.policy.queue_timeout_s
        place = Place(waiter, asking, deadline, id=self._asked, door=door, at=now)
        self._places[place.id] = place
        if self._link is not None:
            self._link.send(Ask(place.id, door.deployment.name, asking, now))
        return place

    def left(self, door: SharedDoor, seats: Seats, result: Result, asking: Asking) -> None:
        if self._link is not None:
            replica = seats.replica
            self._link.send(Leave(door.deployment.name, replica.name, replica.launch, result, asking))

    def learned(self, door: SharedDoor, seats: Seats, event: Event) -> None:
        if self._link is not None:
            replica = seats.replica
            self._link.send(Learned(door.deployment.name, replica.name, replica.launch, event, seats.refusing))

    def forget(self, door: SharedDoor, ticket: Queued) -> None:
        place = ticket if isinstance(ticket, Place) else self._moved.pop(ticket, None)
        if place is None:
            Admission.forget(door, ticket)
            return
        if place.inner is not None:
            Admission.forget(door, place.inner)
        elif self._places.pop(place.id, None) is not None and self._link is not None:
            self._link.send(Forget(place.id))

    def expire(self, door: SharedDoor, now: float) -> None:
        word_within_s = WORD_WITHIN_S if self._link is not None else 0.0
        late = [one for one in self._places.values() if one.door is door and one.deadline + word_within_s <= now]
        for place in late:
            self.forget(door, place)
            text = f"{door.deployment.name!r}: waited {door.deployment.policy.queue_timeout_s:g} s for a free replica"
            place.waiter.not_seated(unavailable(text, retry_after_s=door.retry_after_s()))

    # The owner's word.

    def granted(self, word: Granted) -> None:
        place = self._places.pop(word.id, None)
        if place is None:
            # Its client has left meanwhile.
            self._give_back(word)
            return
        door = place.door
        seats = self._seats(door, word)
        if seats is None:
            self.look()
            seats = self._seats(door, word)
        if seats is None:
            # The owner knows a launch that we do not: asked again, at the back of the queue but with its old deadline.
            self._give_back(word)
            self._ask_again(place)
            return
        door.granted(place.waiter, place.asking, seats, word.decision)

    def _seats(self, door: Admission, word: Granted) -> Seats | None:
        seats = door.seats.get(word.replica)
        return seats if seats is not None and seats.replica.launch == word.launch else None

    def _give_back(self, word: Granted) -> None:
        if self._link is not None:
            self._link.send(Leave(word.deployment, word.replica, word.launch, WITHDRAWN, Asking(key_id=word.key_id)))

    def _ask_again(self, place: Place) -> None:
        self._places[place.id] = place
        asyncio.get_running_loop().call_later(RETRY_EVERY_S, self._send_ask, place)

    def _send_ask(self, place: Place) -> None:
        if self._link is not None and self._places.get(place.id) is place:
            self._link.send(Ask(place.id, place.door.deployment.name, place.asking, place.at))

    def turned_away(self, word: NotSeated) -> None:
        place = self._places.pop(word.id, None)
        if place is not None:
            refusal = Refusal(word.status, word.message, code=word.code, retry_after_s=word.retry_after_s)
            place.waiter.not_seated(refusal)

    def members(self, count: int) -> None:
        """How many workers the present owner is linked to: as many, but us, the next one has to hear from."""
        self._members = count - 1

    # Who owns.

    async def keep_forever(self) -> None:
        """Own, or be linked to the owner, as long as this worker lives."""
        while True:
            if self._may_own and self._take_lock():
                await self._own()
                await self._recount()
                await self._over.wait()
                continue
            link = await self._dial()
            if link is None:
                await asyncio.sleep(RETRY_EVERY_S)
                continue
            self._declare(link)
            await link.answered(RECOUNT_WITHIN_S / 2)
            await link.over.wait()
            self._link = None

    def _take_lock(self) -> bool:
        if self._lock < 0:
            self._lock = os.open(self._address.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def _own(self) -> None:
        self._recounted.clear()
        for door in self._doors.values():
            assert isinstance(door, SharedDoor)
            door.begin_to_own(monotonic())
        self._desk = Desk(self._doors, self.look, self._hear_declared, self._members)
        # Bound under another name first: whoever dials finds a socket that listens, or none.
        fresh = self._address.with_name(f"{self._address.name}.{secrets.token_hex(4)}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(str(fresh))
        os.chmod(fresh, 0o600)
        sock.listen(64)
        os.rename(fresh, self._address)
        server = await asyncio.get_running_loop().create_unix_server(self._desk.link, sock=sock)
        if self._may_own:
            self._server = server
        else:
            # Told to step down meanwhile: whoever has dialled already dials again.
            server.close()

    def _hear_declared(self) -> None:
        if self._desk is not None and self._desk.declared() >= self._members:
            self._recounted.set()

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
        places, self._places = self._places, {}
        for place in places.values():
            self._enter_here(place)

    def _enter_here(self, place: Place) -> None:
        try:
            place.inner = Admission.enter(place.door, place.waiter, place.asking, place.at)
        except Refusal as refusal:
            place.waiter.not_seated(refusal)
            return
        if place.inner is not None:
            self._entered[place.inner] = place

    async def _dial(self) -> _LinkToOwner | None:
        try:
            _, link = await asyncio.get_running_loop().create_unix_connection(
                lambda: _LinkToOwner(self), str(self._address)
            )
        except OSError:
            return None
        return link

    def _declare(self, link: _LinkToOwner) -> None:
        """Say what we hold and what we wait for."""
        self._link = link
        link.send(Hello(PROTOCOL))
        for name, door in self._doors.items():
            assert isinstance(door, SharedDoor)
            for hold, count in door.own.items():
                link.send(Holding(name, *hold, count))
        link.send(Declared())
        for place in self._places.values():
            link.send(Ask(place.id, place.door.deployment.name, place.asking, place.at))

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
        for door in self._doors.values():
            for ticket in door.withdraw():
                self._move(door, ticket)
        self._release()
        self._over.set()

    def _move(self, door: Admission, ticket: Queued) -> None:
        assert isinstance(door, SharedDoor)
        place = self._entered.pop(ticket, None)
        if place is None:
            at = ticket.deadline - door.deployment.policy.queue_timeout_s
            self._asked += 1
            place = Place(ticket.waiter, ticket.asking, ticket.deadline, id=self._asked, door=door, at=at)
            self._moved[ticket] = place
        place.inner = None
        self._places[place.id] = place

    def _release(self) -> None:
        if self._server is not None:
            self._server.close()
            self._address.unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _LinkToOwner(Frames):
    """A worker's end. `over` once the owner is gone."""

    def __init__(self, group: Group) -> None:
        super().__init__(ToWorker)
        self._group = group
        self._heard, self.over = asyncio.Event(), asyncio.Event()

    async def answered(self, within_s: float) -> None:
        """Ends the link where the owner says nothing in reply: a connection that was made just as the owner closed its
        server can stay open with nobody at its other end (seen with asyncio's loop)."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), within_s)
        if not self._heard.is_set():
            self.abort()
            self.over.set()

    def heard(self, message: object) -> None:
        self._heard.set()
        match message:
            case Granted():
                self._group.granted(message)
            case NotSeated():
                self._group.turned_away(message)
            case Members(count):
                self._group.members(count)
            case _:
                self.abort()

    def ended(self) -> None:
        self._heard.set()
        self.over.set()
