"""What keys may use holds over all workers as over one, whoever ends: nothing is given twice, nothing stays taken."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic as now
from typing import Any

import pytest
from gateway_fakes import MODEL, deployment

from modelyard.gateway import group as group_module
from modelyard.gateway.accounts import Account, Accounts, Asked, Reservation, rate_limit_lines
from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued
from modelyard.gateway.group import Group
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.seats import Seats
from modelyard.gateway.seeding import Seeding
from modelyard.observe.journal import read_journal
from modelyard.records.decision import Decision
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import Budgets, KeyCreated, KeyRecord, Limits
from modelyard.records.topology import Replica

Eventually = Callable[..., Awaitable[Any]]
NOON = 1_700_049_600.0
PRICE = 7


def key(name: str = "k", **bounds: int) -> KeyRecord:
    limits = {field: bounds.pop(field) for field in Limits.__struct_fields__ if field in bounds}
    return KeyRecord(
        id=name, sha256="f" * 64, name=name, created_at=0.0, limits=Limits(**limits), budgets=Budgets(**bounds)
    )


@dataclass(eq=False)
class Asker:
    """A request as an exchange leads it: it reserves, asks for a seat, has a record, settles."""

    worker: Worker
    id: str
    tokens: int
    reservation: Reservation | None = None
    asking: Asking = field(default_factory=Asking)
    ticket: Queued | None = None
    seats: Seats | None = None
    refusal: Refusal | None = None
    is_over: bool = False

    def seated(self, seats: Seats, decision: Decision) -> None:
        assert self.seats is None and self.refusal is None, "one answer"
        self.seats = seats

    def not_seated(self, refusal: Refusal) -> None:
        assert self.seats is None and self.refusal is None
        self.refusal = refusal
        self._settle(0)

    def _settle(self, tokens: int) -> None:
        self.is_over = True
        if self.reservation is not None:
            self.reservation.settle(tokens, tokens * PRICE, now())

    @property
    def is_in(self) -> bool:
        return self.seats is not None and not self.is_over

    def finish(self, tokens: int) -> None:
        assert self.seats is not None
        journal = self.worker.journal
        journal.write(
            RequestRecord(
                request_id=self.id,
                worker=journal.worker,
                sequence=journal.sequence,
                at=NOON,
                endpoint="/v1/chat/completions",
                status=200,
                outcome="complete",
                key_id=self.asking.key_id,
                attempts=1,
                completion_tokens=tokens,
                cost_pico=tokens * PRICE,
            )
        )
        self._settle(tokens)
        self.worker.door.leave(self.seats, WITHDRAWN, self.asking)

    def leave(self) -> None:
        """The client is gone while it waits."""
        assert self.ticket is not None and self.seats is None
        self.worker.door.forget(self.ticket)
        self._settle(0)


class Worker:
    def __init__(self, folder: Path, of: int, *keys: KeyRecord) -> None:
        self.journal = JournalWriter(folder)
        self.keyring = Keyring()
        for one in keys:
            self.keyring.apply(KeyCreated(key=one))
        self.doors: dict[str, Admission] = {}
        self.seeding = Seeding(self.keyring, folder / "spending.json", folder, lambda: NOON)
        self.group = Group(
            folder / "admission.sock", of, self.doors, self.keyring, self.seeding, self.journal, lambda: None
        )
        self.task = asyncio.create_task(self.group.keep_forever())
        self.askers: list[Asker] = []
        self.is_dead = False

    @property
    def door(self) -> Admission:
        return self.doors[MODEL]

    def account(self, name: str = "k") -> Account:
        [account] = self.group.accounts.line(self.keyring.keys[name])
        return account

    def ask(self, tokens: int = 10, name: str = "k") -> Asker:
        asker = Asker(self, f"req_{self.journal.worker}{len(self.askers):08x}", tokens)
        self.askers.append(asker)
        line = self.group.accounts.line(self.keyring.keys[name])
        try:
            reservation = self.group.accounts.reserve(line, Asked(tokens, tokens * PRICE, NOON), now(), asker.id)
            asker.reservation, asker.asking = reservation, Asking(key_id=name, wanted=reservation.wanted)
            asker.ticket = self.door.enter(asker, asker.asking, now())
        except Refusal as refusal:
            asker.not_seated(refusal)
        return asker

    def die(self) -> None:
        """As the kernel sees it: every descriptor is closed, what was not written yet is lost."""
        self.is_dead = True
        self.task.cancel()
        group: Any = self.group
        if group._server is not None:
            group._server.close()
        for link in (group._link, *(group._desk.links if group._desk is not None else ())):
            if link is not None:
                link.abort()
        if group._ownership._lock >= 0:
            os.close(group._ownership._lock)


class Workers:
    def __init__(self, folder: Path, eventually: Eventually) -> None:
        self.folder, self._eventually = folder, eventually
        self.all: list[Worker] = []
        self.keys: tuple[KeyRecord, ...] = (key(),)
        self.cap = 1000

    @property
    def alive(self) -> list[Worker]:
        return [one for one in self.all if not one.is_dead]

    async def start(self, count: int, *keys: KeyRecord) -> list[Worker]:
        self.keys = keys or self.keys
        fresh: list[Worker] = []
        for _ in range(count):
            worker = Worker(self.folder, max(count, len(self.alive) + 1), *self.keys)
            replica = Replica(name="r0", launch="l0", address="unix:/nowhere", max_in_flight=self.cap)
            worker.doors[MODEL] = worker.group.door(deployment(replicas=(replica,)))
            worker.door.update(worker.door.deployment)
            self.all.append(worker)
            fresh.append(worker)
        await self.owner()
        return fresh

    async def owner(self) -> Worker:
        """Once everyone who lives is linked to it, and what was said is heard."""
        found: list[Worker] = []

        def is_settled() -> bool:
            found[:] = [one for one in self.alive if one.group.is_here]
            others = [one for one in self.alive if one not in found]
            desk: Any = found[0].group._desk if len(found) == 1 else None  # type: ignore[reportPrivateUsage]
            return (
                desk is not None
                and all(one.group.is_linked for one in others)
                and sum(link.has_declared for link in desk.links) == len(desk.links) == len(others)
                and all(one.is_over or one.seats for worker in self.alive for one in worker.askers)
            )

        await self._eventually(is_settled, what="one owner, everyone else linked, nobody waits")
        return found[0]

    def in_flight(self) -> list[Asker]:
        return [one for worker in self.alive for one in worker.askers if one.is_in]

    def recorded(self) -> list[RequestRecord]:
        return list(read_journal(self.folder).records)

    def tokens(self) -> int:
        return sum(one.completion_tokens for one in self.recorded())


@pytest.fixture
async def workers(eventually: Eventually, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Workers]:
    # A busy machine must not make a worker too slow to be heard: what happens then is a bound, not the rule.
    monkeypatch.setattr(group_module, "RECOUNT_WITHIN_S", 8.0)
    with tempfile.TemporaryDirectory(prefix="yl-") as name:
        made = Workers(Path(name), eventually)
        yield made
        for worker in made.alive:
            worker.die()
        await asyncio.gather(*(one.task for one in made.all), return_exceptions=True)
        for worker in made.all:
            worker.journal.close()


async def test_requests_at_once_are_counted_over_all_workers(workers: Workers, eventually: Eventually) -> None:
    first, second, third = await workers.start(3, key(concurrent_requests=3))
    held = [first.ask(), second.ask(), third.ask()]
    await workers.owner()
    assert all(one.is_in for one in held)
    refused = [one.ask() for one in (first, second, third)]
    await workers.owner()
    assert [one.refusal.message if one.refusal else "" for one in refused] == [
        "the limit of 3 requests at once (key 'k')"
    ] * 3
    held[1].finish(5)
    await eventually(lambda: first.account().in_flight == 2)
    again = third.ask()
    await workers.owner()
    assert again.is_in


async def test_a_refusal_of_the_owner_says_all_that_one_of_our_own_does(workers: Workers) -> None:
    owner, other = await workers.start(2, key(requests_per_minute=2, tokens_per_minute=500))
    granted = other.ask(120)
    await workers.owner()
    assert granted.reservation is not None
    lines = granted.reservation.lines.decode()
    assert "x-ratelimit-remaining-requests: 1\r\n" in lines and "x-ratelimit-remaining-tokens: 380\r\n" in lines
    owner.ask(100)
    here, there = owner.ask(100), other.ask(100)
    await workers.owner()
    assert here.refusal is not None and there.refusal is not None
    assert (there.refusal.status, there.refusal.message, there.refusal.code, there.refusal.retry_after_s) == (
        here.refusal.status,
        here.refusal.message,
        here.refusal.code,
        here.refusal.retry_after_s,
    )
    assert ("x-ratelimit-remaining-requests", "0") in there.refusal.fields
    assert [name for name, _ in there.refusal.fields] == [name for name, _ in here.refusal.fields]


async def test_what_a_dead_worker_held_is_free_and_what_it_recorded_is_spent(
    workers: Workers, eventually: Eventually
) -> None:
    owner, other = await workers.start(2, key(concurrent_requests=2, tokens_per_day=100))
    recorded, lost = other.ask(30), other.ask(60)
    await workers.owner()
    assert lost.is_in and owner.account().in_flight == 2
    recorded.finish(25)  # Its word of that never leaves.
    other.die()
    await eventually(lambda: owner.account().in_flight == 0)
    assert owner.ask(75).is_in, "60 came back, 25 are spent"
    assert owner.ask(1).refusal is not None


async def test_what_was_used_is_known_to_the_next_owner(workers: Workers, eventually: Eventually) -> None:
    first, second, third = await workers.start(3, key(requests_per_minute=6, tokens_per_day=100))
    for worker in (first, second, third):
        asker = worker.ask(10)
        await workers.owner()
        asker.finish(10)
    held = second.ask(20)
    await workers.owner()
    first.die()
    owner = await workers.owner()
    assert owner.account().in_flight == 1
    assert "remaining-requests: 2" in rate_limit_lines((owner.account(),), now())
    too_much = third.ask(51)
    await workers.owner()
    assert too_much.refusal is not None and "requests in flight hold the rest" in too_much.refusal.message
    held.finish(1)
    await eventually(lambda: owner.account().in_flight == 0)
    enough = third.ask(69)
    await workers.owner()
    assert enough.is_in


async def test_what_ends_just_after_the_next_owner_has_read_the_journal_is_told_to_it(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await workers.start(3, key(tokens_per_day=100, requests_per_minute=5))
    before, after = third.ask(30), third.ask(40)
    await workers.owner()

    def read_then_end(read: Callable[[Accounts], dict[str, int]]) -> Callable[[Accounts], dict[str, int]]:
        def seeded(accounts: Accounts) -> dict[str, int]:
            if before.is_in:
                before.finish(20)
            counted = read(accounts)
            if after.is_in:
                after.finish(35)
            return counted

        return seeded

    # The owner reads in one turn of its loop: what may end meanwhile is another worker's.
    monkeypatch.setattr(third.group._ownership, "take", lambda: False)  # type: ignore[reportPrivateUsage]
    monkeypatch.setattr(second.seeding, "begin", read_then_end(second.seeding.begin))
    first.die()
    owner = await workers.owner()
    assert owner is second
    assert owner.account().in_flight == 0
    assert "remaining-requests: 3" in rate_limit_lines((owner.account(),), now())
    assert owner.ask(46).refusal is not None, "20 and 35 are spent, each once"
    assert owner.ask(45).is_in


async def test_who_steps_down_has_its_reservations_at_the_next_owner(workers: Workers, eventually: Eventually) -> None:
    first, second = await workers.start(2, key(concurrent_requests=3))
    held = [first.ask(), first.ask(), second.ask()]
    await workers.owner()
    first.group.step_down()
    assert await workers.owner() is second
    assert second.account().in_flight == 3 and second.ask().refusal is not None
    held[0].finish(1)
    await eventually(lambda: second.account().in_flight == 2)
    assert second.ask().is_in


async def test_who_leaves_while_nobody_owns_holds_nothing(workers: Workers, eventually: Eventually) -> None:
    workers.cap = 1
    first, second, third = await workers.start(3, key(concurrent_requests=2))
    first.ask()
    waiting = second.ask()
    await eventually(lambda: first.account().in_flight == 2)
    first.die()
    waiting.leave()
    owner = await workers.owner()
    await eventually(lambda: owner.account().in_flight == 0)
    assert third.ask().refusal is None


@pytest.mark.parametrize("number", range(8))
async def test_whoever_ends_no_bound_is_passed_and_the_owner_knows_what_the_journal_says(
    workers: Workers, eventually: Eventually, number: int
) -> None:
    """Random requests, ends, deaths, and workers that step down or join, with as many turns of the event loop in
    between as chance will have."""
    chance = random.Random(number)
    most_requests, most_at_once, most_tokens = 60, 9, 1500
    bounds = key(requests_per_minute=most_requests, concurrent_requests=most_at_once, tokens_per_day=most_tokens)
    await workers.start(3, bounds)
    aside: list[Worker] = []
    lost = 0

    def check() -> None:
        in_flight = workers.in_flight()
        assert len(in_flight) <= most_at_once
        assert workers.tokens() + sum(one.tokens for one in in_flight) <= most_tokens
        assert len(workers.recorded()) + len(in_flight) <= most_requests

    for _ in range(120):
        action = chance.random()
        serving = [one for one in workers.alive if one not in aside]
        if action < 0.55:
            chance.choice(serving).ask(chance.randint(1, 60))
        elif action < 0.9:
            if in_flight := workers.in_flight():
                asker = chance.choice(in_flight)
                asker.finish(chance.randint(0, asker.tokens))
        elif action < 0.95 and len(serving) > 1:
            victim = chance.choice(serving)
            await workers.owner()
            lost += sum(one.is_in for one in victim.askers)
            if finishing := [one for one in victim.askers if one.is_in]:
                finishing[0].finish(finishing[0].tokens)
                lost -= 1
            victim.die()
            if chance.random() < 0.5 and (in_flight := workers.in_flight()):
                in_flight[0].finish(in_flight[0].tokens)
            await workers.owner()
        elif action < 0.97 and len(serving) > 1:
            await workers.owner()
            owner = await workers.owner()
            if owner in serving:
                owner.group.step_down()
                aside.append(owner)
                await workers.owner()
        elif len(workers.alive) < 4:
            await workers.owner()
            await workers.start(1)
        for _ in range(chance.randint(0, 3)):
            await asyncio.sleep(0)
        check()
    owner = await workers.owner()
    account: Any = owner.account()
    await eventually(lambda: account.in_flight == len(workers.in_flight()))
    for asker in workers.in_flight():
        asker.finish(asker.tokens)
    await eventually(lambda: account.in_flight == 0)
    check()
    used = account._day._used
    assert (used.tokens, used.held_tokens) == (workers.tokens(), 0), "to the token"
    assert account.requests.used - len(workers.recorded()) <= lost, "only those that nobody answered"
