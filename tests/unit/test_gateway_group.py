"""Several workers, one owner: caps hold over all of them, whoever ends, and nobody who waits is lost."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic as now
from typing import Any

import pytest
from gateway_fakes import MODEL, deployment

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Result
from modelyard.gateway.group import Group
from modelyard.gateway.group_wire import Ask, Hello
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.seats import Seats
from modelyard.gateway.seeding import Seeding
from modelyard.records.decision import Decision
from modelyard.records.topology import Deployment, Replica

Eventually = Callable[..., Awaitable[Any]]
CAP = 2
ASKING = Asking(key_id="k")


def replicas(*launches: str, cap: int = CAP) -> tuple[Replica, ...]:
    return tuple(
        Replica(name=f"r{number}", launch=launch, address="unix:/nowhere", max_in_flight=cap)
        for number, launch in enumerate(launches)
    )


@dataclass
class Asker:
    """A request: what became of it."""

    seats: Seats | None = None
    reason: str = ""
    ticket: Queued | None = None

    def seated(self, seats: Seats, decision: Decision) -> None:
        assert self.seats is None and not self.reason, "seated once"
        self.seats = seats

    def not_seated(self, refusal: Refusal) -> None:
        assert self.seats is None and not self.reason
        self.reason = refusal.message


@dataclass
class Worker:
    """A worker without clients. `topology` is what it would read when it looks anew."""

    group: Group
    doors: dict[str, Admission]
    topology: list[Deployment] = field(default_factory=list[Deployment])
    task: asyncio.Task[None] | None = None

    @property
    def door(self) -> Admission:
        return self.doors[MODEL]

    def look(self) -> None:
        for wanted in self.topology:
            if wanted.name not in self.doors:
                self.doors[wanted.name] = self.group.door(wanted)
            self.doors[wanted.name].update(wanted)

    def follow(self, *deployments: Deployment) -> None:
        self.topology = list(deployments)
        self.look()

    def ask(self, asking: Asking = ASKING) -> Asker:
        asker = Asker()
        try:
            asker.ticket = self.door.enter(asker, asking, now())
        except Refusal as refusal:
            asker.not_seated(refusal)
        return asker

    def leave(self, asker: Asker) -> None:
        assert asker.seats is not None
        self.door.leave(asker.seats, WITHDRAWN, ASKING)

    def forget(self, asker: Asker) -> None:
        assert asker.ticket is not None
        self.door.forget(asker.ticket)

    @property
    def in_flight(self) -> int:
        return sum(seats.in_flight for seats in self.door.seats.values())

    def die(self) -> None:
        """As the kernel sees it: every descriptor is closed, nothing is said."""
        assert self.task is not None
        self.task.cancel()
        group = self.group
        if group._server is not None:  # type: ignore[reportPrivateUsage]
            group._server.close()  # type: ignore[reportPrivateUsage]
        for link in (group._link, *(group._desk.links if group._desk is not None else ())):  # type: ignore[reportPrivateUsage]
            if link is not None:
                link.abort()
        ownership = group._ownership  # type: ignore[reportPrivateUsage]
        if ownership._lock >= 0:  # type: ignore[reportPrivateUsage]
            os.close(ownership._lock)  # type: ignore[reportPrivateUsage]


def group_of(folder: Path, workers: int, doors: dict[str, Admission], look: Callable[[], None]) -> Group:
    """Without keys: what they may use is test_shared_accounts.py's."""
    keyring = Keyring()
    seeding = Seeding(keyring, folder / "spending.json", folder)
    return Group(folder / "admission.sock", workers, doors, keyring, seeding, JournalWriter(None), look)


class Workers:
    def __init__(self, folder: Path, eventually: Eventually) -> None:
        self._folder, self._eventually = folder, eventually
        self.all: list[Worker] = []

    async def start(self, *deployments: Deployment, of: int = 2) -> Worker:
        """Another worker of a group of `of`; with the first one, wait until it owns."""
        doors: dict[str, Admission] = {}
        worker = Worker(group_of(self._folder, of, doors, lambda: worker.look()), doors)
        worker.task = asyncio.create_task(worker.group.keep_forever())
        worker.follow(*deployments)
        self.all.append(worker)
        await self._eventually(lambda: worker.group.is_here or worker.group.is_linked, what="an owner, or a link to it")
        return worker

    async def one_owner(self, *workers: Worker) -> Worker:
        owners: list[Worker] = []

        def is_settled() -> bool:
            owners[:] = [one for one in workers if one.group.is_here]
            return len(owners) == 1 and all(one.group.is_here or one.group.is_linked for one in workers)

        await self._eventually(is_settled, what="one owner, everyone else linked")
        return owners[0]


@pytest.fixture
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="yg-") as name:
        yield Path(name)


@pytest.fixture
async def workers(folder: Path, eventually: Eventually) -> AsyncGenerator[Workers]:
    made = Workers(folder, eventually)
    yield made
    for worker in made.all:
        if worker.task is not None and not worker.task.done():
            worker.die()
    await asyncio.gather(*(one.task for one in made.all if one.task is not None), return_exceptions=True)


@asynccontextmanager
async def two(workers: Workers, shape: Deployment) -> AsyncGenerator[tuple[Worker, Worker]]:
    """The owner and another worker."""
    owner = await workers.start(shape)
    other = await workers.start(shape)
    assert owner.group.is_here and not other.group.is_here
    yield owner, other


async def test_the_cap_holds_over_all_workers_and_the_first_in_line_goes_first(
    workers: Workers, eventually: Eventually
) -> None:
    async with two(workers, deployment(replicas=replicas("l0"))) as (owner, other):
        here, there = owner.ask(), other.ask()
        await eventually(lambda: there.seats is not None)
        assert here.seats is not None and owner.in_flight == CAP and other.in_flight == 1
        first = other.ask()
        await eventually(lambda: owner.door.queue.waiting)
        second = owner.ask()
        owner.leave(here)
        await eventually(lambda: first.seats is not None)
        assert second.seats is None, "it came later"
        other.leave(there)
        await eventually(lambda: second.seats is not None)
        assert owner.in_flight == CAP


async def test_what_the_owner_says_no_to_is_told(workers: Workers, eventually: Eventually) -> None:
    async with two(workers, deployment(replicas=replicas("l0", cap=1), max_queued=0)) as (owner, other):
        assert owner.ask().seats is not None
        refused = other.ask()
        await eventually(lambda: refused.reason)
        assert "the queue is full" in refused.reason


async def test_who_wants_a_seat_at_once_never_waits_at_the_owners_door(
    workers: Workers, eventually: Eventually
) -> None:
    at_once = Asking(key_id="k", at_once=True)
    async with two(workers, deployment(replicas=replicas("l0"))) as (owner, other):
        held = [other.ask(at_once), other.ask(at_once)]
        await eventually(lambda: all(one.seats for one in held))
        refused = other.ask(at_once)
        await eventually(lambda: refused.reason)
        assert "no seat is free at once" in refused.reason and not owner.door.queue.waiting
        assert owner.in_flight == CAP


async def test_the_owner_learns_from_every_worker_how_late_first_tokens_come(
    workers: Workers, eventually: Eventually
) -> None:
    shape = deployment(replicas=replicas("l0", cap=16), reserved_seats=0.0)
    owner = await workers.start(shape)
    other = await workers.start(shape)
    quick, late = (Result("answered", first_s, 20, first_s, 10) for first_s in (0.1, 5.0))
    for result, requests in ((quick, 1), (late, 16)):
        asked = [other.ask() for _ in range(requests)]
        await eventually(lambda asked=asked: all(one.seats is not None for one in asked))
        for one in asked:
            assert one.seats is not None
            other.door.leave(one.seats, result, ASKING)
        await eventually(lambda: owner.in_flight == 0)
    owner.door.expire(now())
    assert owner.door.seats["r0"].limit < 16
    assert other.door.seats["r0"].limit == 16, "who owns nothing decides nothing"


async def test_a_dead_worker_leaves_nothing_behind(workers: Workers, eventually: Eventually) -> None:
    async with two(workers, deployment(replicas=replicas("l0"))) as (owner, other):
        held = [other.ask(), other.ask()]
        await eventually(lambda: all(one.seats for one in held))
        waiting = other.ask()
        await eventually(lambda: owner.door.queue.waiting)
        mine = owner.ask()
        other.die()
        await eventually(lambda: mine.seats is not None)
        assert owner.in_flight == 1 and not owner.door.queue.waiting
        assert waiting.seats is None


async def test_a_place_that_is_forgotten_is_free(workers: Workers, eventually: Eventually) -> None:
    async with two(workers, deployment(replicas=replicas("l0", cap=1))) as (owner, other):
        mine = owner.ask()
        leaves, stays = other.ask(), other.ask()
        await eventually(lambda: owner.door.queue.waiting == 2)
        other.forget(leaves)
        await eventually(lambda: owner.door.queue.waiting == 1)
        owner.leave(mine)
        await eventually(lambda: stays.seats is not None)
        assert leaves.seats is None


async def test_a_seat_that_comes_for_somebody_who_has_left_goes_back(workers: Workers, eventually: Eventually) -> None:
    async with two(workers, deployment(replicas=replicas("l0", cap=1))) as (owner, other):
        gone = other.ask()
        # Before the owner can have answered: its word will cross ours.
        await asyncio.sleep(0)
        other.forget(gone)
        again = other.ask()
        await eventually(lambda: again.seats is not None)
        assert gone.seats is None and owner.in_flight == 1


async def test_when_the_owner_dies_another_one_counts_what_is_held(workers: Workers, eventually: Eventually) -> None:
    shape = deployment(replicas=replicas("l0", cap=3))
    first, second, third = [await workers.start(shape, of=3) for _ in range(3)]
    held = [first.ask(), second.ask(), third.ask()]
    await eventually(lambda: all(one.seats for one in held))
    waiting = [second.ask(), third.ask(), second.ask()]
    await eventually(lambda: first.door.queue.waiting == 3)
    first.die()
    owner = await workers.one_owner(second, third)
    # The dead worker's seat was free at once: exactly one of those that waited has it.
    await eventually(lambda: sum(one.seats is not None for one in waiting) == 1)
    assert owner.in_flight == 3 and owner.door.queue.waiting == 2
    second.leave(held[1])
    third.leave(held[2])
    await eventually(lambda: all(one.seats is not None for one in waiting))
    assert owner.in_flight == 3
    assert (third if owner is second else second).in_flight == (1 if owner is second else 2)


async def test_who_steps_down_keeps_its_seats_and_its_queue_moves(workers: Workers, eventually: Eventually) -> None:
    async with two(workers, deployment(replicas=replicas("l0"))) as (owner, other):
        held = [owner.ask(), other.ask()]
        await eventually(lambda: all(one.seats for one in held))
        mine, theirs, forgotten = owner.ask(), other.ask(), owner.ask()
        await eventually(lambda: owner.door.queue.waiting == 3)
        owner.group.step_down()
        assert await workers.one_owner(owner, other) is other
        await eventually(lambda: other.door.queue.waiting == 3)
        assert (owner.in_flight, other.in_flight) == (1, CAP), "both seats are known to the next owner"
        owner.forget(forgotten)
        await eventually(lambda: other.door.queue.waiting == 2)
        owner.leave(held[0])
        other.leave(held[1])
        await eventually(lambda: mine.seats is not None and theirs.seats is not None)
        assert forgotten.seats is None and other.in_flight == CAP


async def test_who_steps_down_while_it_counts_does_not_make_the_next_owner_forget_anybody(workers: Workers) -> None:
    """A reload tells all old workers to step aside, the owner first: the next one owns for a moment."""
    shape = deployment(replicas=replicas("l0", cap=3))
    first, *others = [await workers.start(shape, of=3) for _ in range(3)]
    held = [one.ask() for one in (first, *others)]
    await workers._eventually(lambda: all(one.seats for one in held))  # type: ignore[reportPrivateUsage]
    newcomer = first.ask()
    first.group.step_down()
    while True:
        counting = [one for one in others if one.group._desk is not None]  # type: ignore[reportPrivateUsage]
        if counting:
            break
        await asyncio.sleep(0)
    assert not counting[0].group.is_here, "it has not counted yet"
    counting[0].group.step_down()
    [last] = [one for one in others if one is not counting[0]]
    assert await workers.one_owner(first, *others) is last
    assert last.in_flight == 3 and newcomer.seats is None
    last.leave(held[1 + others.index(last)])
    await workers._eventually(lambda: newcomer.seats is not None)  # type: ignore[reportPrivateUsage]


async def test_without_an_owner_who_waits_is_told_at_the_deadline(folder: Path) -> None:
    doors: dict[str, Admission] = {}
    group = group_of(folder, 2, doors, lambda: None)
    worker = Worker(group, doors)
    worker.follow(deployment(replicas=replicas("l0"), queue_timeout_s=5.0))
    asker = worker.ask()
    worker.door.expire(now() + 4.0)
    assert not asker.reason
    worker.door.expire(now() + 5.1)
    assert asker.reason.endswith("waited 5 s for a free replica")


async def test_a_launch_that_a_worker_has_not_read_of_yet_is_looked_up(
    workers: Workers, eventually: Eventually
) -> None:
    old, new = (deployment(replicas=replicas(launch)) for launch in ("l0", "l1"))
    async with two(workers, old) as (owner, other):
        owner.follow(new)
        other.topology = [new]
        asker = other.ask()
        await eventually(lambda: asker.seats is not None)
        assert asker.seats is not None and asker.seats.replica.launch == "l1"
        # And where it is not even on disk, it is asked for again until it is.
        newest = deployment(replicas=replicas("l2"))
        owner.follow(newest)
        asker = other.ask()
        await eventually(lambda: owner.door.turns > 5)
        assert asker.seats is None
        other.follow(newest)
        await eventually(lambda: asker.seats is not None)
        await eventually(lambda: owner.in_flight == 1)


async def test_a_deployment_that_the_owner_has_not_read_of_yet_is_looked_up(
    workers: Workers, eventually: Eventually
) -> None:
    shape = deployment(replicas=replicas("l0"))
    owner, other = await workers.start(), await workers.start(shape)
    owner.topology = [shape]
    asker = other.ask()
    await eventually(lambda: asker.seats is not None)
    assert owner.in_flight == 1


async def test_another_version_is_not_spoken_to(workers: Workers, folder: Path, eventually: Eventually) -> None:
    import msgspec

    await workers.start(deployment(replicas=replicas("l0")))
    for message in (Hello(0, ""), Ask(1, MODEL, Asking(), now()), b"noise"):
        reader, writer = await asyncio.open_unix_connection(str(folder / "admission.sock"))
        body = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        writer.write(len(body).to_bytes(4, "big") + body)
        if not isinstance(message, Ask):
            assert await reader.read() == b""
        writer.close()
