"""One campaign per target: kill it at random moments under load, and hold what follows against what was promised."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from benchmarks import kills_processes
from benchmarks.kills_client import Answer, Client, Load, Question
from benchmarks.kills_processes import Process
from benchmarks.kills_yard import KilledYard, RunningEngine
from benchmarks.subjects import CannotMeasure
from modelyard.selftest.bench import until

# A shim that does not dial a new control within three seconds is given up: only after them is an adoption final.
ADOPTED_FOR_SURE_S = 3.5
# Five starts in ten minutes are a crash loop, and a replica in one is not started again: right for a service, and the
# end of a campaign. An operator's restart begins a new history; the campaign asks for one between groups of four.
KILLS_PER_HISTORY = 4


@dataclass(frozen=True)
class Bounds:
    """What is promised, in seconds after the kill; `recovered_s` comes on top of the time that an engine loads."""

    recovered_s: float = 5.0
    reset_s: float = 1.0
    answering_s: float = 2.0
    freed_s: float = 2.0
    gone_s: float = 5.0
    replaced_after_stop_s: float = 60.0

    def times(self, factor: float) -> Bounds:
        """For tests, which run beside anything else and are not about speed."""
        return Bounds(*(getattr(self, one.name) * factor for one in fields(self)))


PROMISED = Bounds()


@dataclass
class Row:
    """What became of the requests of one campaign. `times` holds seconds by name, one per kill."""

    target: str
    kills: int = 0
    in_flight: int = 0
    answers: list[Answer] = field(default_factory=list[Answer])
    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    problems: list[str] = field(default_factory=list[str])

    def within(self, name: str, took_s: float | None, bound_s: float) -> None:
        """Note a time; None or more than the bound is a problem."""
        if took_s is not None:
            self.times.setdefault(name, []).append(took_s)
        if took_s is None or took_s > bound_s:
            self.wrong(f"{name}: {'not' if took_s is None else f'{took_s:.2f} s,'} within {bound_s:.2f} s")

    def wrong(self, what: str) -> None:
        self.problems.append(f"kill {self.kills}: {what}")


@dataclass
class Site:
    """A yard under load. `short` is what a probe asks; `strike_after_s` is between which times of load a kill comes;
    `load_s` is how long a replica takes to be ready with evidence that stands already."""

    yard: KilledYard
    load: Load
    short: Question
    rng: random.Random
    replicas: int
    strike_after_s: tuple[float, float]
    deadline_s: float
    bounds: Bounds
    load_s: float = 0.0

    @property
    def ready_again_s(self) -> float:
        return self.load_s + self.bounds.recovered_s

    async def under_load(self) -> None:
        """Some time later, with requests in flight."""
        self.load.go_on()
        await asyncio.sleep(self.rng.uniform(*self.strike_after_s))
        await until(lambda: self.load.in_flight > 0, self.deadline_s, every_s=0.001)

    async def calm(self) -> None:
        self.load.hold()
        await self.load.quiet()

    async def fresh_history(self, row: Row) -> None:
        if row.kills and row.kills % KILLS_PER_HISTORY == 0:
            await self.restart()

    async def restart(self) -> None:
        """Every replica anew, and the gateway knows it."""
        await self.calm()
        self.load_s = await self.yard.restart_replicas()
        if await until(self.is_answered, self.bounds.recovered_s, every_s=0.1) is None:
            raise CannotMeasure("no question is answered after a restart")

    def strike(self, row: Row, victims: tuple[Process, ...], number: int = signal.SIGKILL) -> float:
        """Signal them now; the moment."""
        row.kills += 1
        row.in_flight += self.load.in_flight
        for victim in victims:
            os.kill(victim.pid, number)
        return time.monotonic()

    async def is_answered(self) -> bool:
        return (await self.probe()).verdict == "whole"

    async def probe(self) -> Answer:
        """One short question over a fresh connection."""
        client = Client(self.yard.port, self.yard.key, self.deadline_s)
        try:
            answer = await client.ask(self.short)
        finally:
            client.close()
        self.load.answers.append(answer)
        return answer


Campaign = Callable[[Site, Row], Awaitable[None]]


async def run_row(target: str, campaign: Campaign, site: Site, kills: int) -> Row:
    """All kills of one target, after a restart that shows how long a replica takes to load."""
    await site.restart()
    row, first = Row(target), len(site.load.answers)
    while row.kills < kills:
        await campaign(site, row)
    await site.calm()
    row.answers = site.load.answers[first:]
    for answer in row.answers:
        if answer.verdict in ("hung", "wrong"):
            row.problems.append(f"{answer.verdict}: {answer.request_id}: {answer.detail}")
    return row


@contextmanager
def no_failed_request(site: Site, row: Row) -> Generator[None]:
    """Every request that ends within the block was answered whole."""
    first = len(site.load.answers)
    yield
    for answer in site.load.answers[first:]:
        if answer.verdict != "whole":
            row.wrong(f"a request failed: {answer.verdict} {answer.detail}")


def check_resets(site: Site, row: Row, first: int, at: float) -> None:
    """Only connections that were open at the kill may be reset, and soon."""
    resets = [answer for answer in site.load.answers[first:] if answer.verdict == "reset"]
    for answer in resets:
        if answer.opened_at > at or answer.sent_at > at + site.bounds.reset_s:
            row.wrong(f"a request after the kill was reset: {answer.detail}")
    if resets:
        row.within("reset", max(answer.ended_at for answer in resets) - at, site.bounds.reset_s)


async def kill_engine(site: Site, row: Row) -> None:
    """Each process of an engine's group in turn: its replica is ready again with a new launch."""
    await site.fresh_history(row)
    await site.under_load()
    victim = site.rng.choice(site.yard.engines())
    at = site.strike(row, (victim.members[row.kills % len(victim.members)],))
    await _replaced(site, row, victim, at, site.ready_again_s)


async def kill_shim(site: Site, row: Row) -> None:
    """The engine is gone at once with its shim."""
    await site.fresh_history(row)
    await site.under_load()
    victim = site.rng.choice(site.yard.engines())
    at = site.strike(row, (victim.shim,))
    row.within(
        "engine gone", await until(lambda: not _any_lives(victim.members), site.bounds.gone_s), site.bounds.reset_s
    )
    await _replaced(site, row, victim, at, site.ready_again_s)


async def stop_engine(site: Site, row: Row) -> None:
    """SIGSTOP: an engine that is there and answers nothing is replaced. Probes time out first: give it a minute."""
    await site.fresh_history(row)
    await site.under_load()
    victim = site.rng.choice(site.yard.engines())
    at = site.strike(row, victim.members, signal.SIGSTOP)
    await _replaced(site, row, victim, at, site.bounds.replaced_after_stop_s)


async def _replaced(site: Site, row: Row, victim: RunningEngine, at: float, within_s: float) -> None:
    def is_routed_anew() -> bool:
        return any(one.name == victim.replica and one.launch != victim.launch for one in site.yard.routed())

    is_replaced = await until(is_routed_anew, within_s)
    row.within("ready again", None if is_replaced is None else time.monotonic() - at, within_s)
    await site.yard.ready()
    if _any_lives((victim.shim, *victim.members)):
        row.wrong("something of the old engine lives")
    _check_engines(site, row)


async def kill_control(site: Site, row: Row) -> None:
    """No request fails; the next control adopts every engine as it is."""
    before = _by_replica(site.yard.engines())
    with no_failed_request(site, row):
        await site.under_load()
        victim = site.yard.child("control")
        at = site.strike(row, (victim,))
        await until(lambda: not victim.lives, site.bounds.gone_s)
        await site.yard.ready()
        row.within("adopted", time.monotonic() - at, site.bounds.recovered_s)
        if row.kills % KILLS_PER_HISTORY == 1:
            await asyncio.sleep(ADOPTED_FOR_SURE_S)
            await site.yard.ready()
        await site.calm()
    if _by_replica(site.yard.engines()) != before:
        row.wrong("an engine is not the same process as before")
    _check_engines(site, row)


async def kill_engine_then_control(site: Site, row: Row) -> None:
    """Control dies somewhere between the engine's death and its replacement: the next one finds half a story."""
    await site.fresh_history(row)
    await site.under_load()
    victim = site.rng.choice(site.yard.engines())
    at = site.strike(row, victim.members)
    await asyncio.sleep(site.rng.uniform(0.0, site.load_s + 0.5))
    os.kill(site.yard.child("control").pid, signal.SIGKILL)
    await _replaced(site, row, victim, at, site.ready_again_s + ADOPTED_FOR_SURE_S)


async def kill_gateway(site: Site, row: Row) -> None:
    """Its connections are reset; the next gateway answers those that wait in the socket's backlog."""
    await site.under_load()
    first = len(site.load.answers)
    site.load.hold()
    at = site.strike(row, (site.yard.child("gateway"),))
    answer = await site.probe()
    if answer.verdict != "whole":
        row.wrong(f"the first new connection: {answer.verdict} {answer.detail}")
    row.within("answering", answer.ended_at - at, site.bounds.answering_s)
    await site.load.quiet()
    check_resets(site, row, first, at)

    async def is_idle() -> bool:
        return await site.yard.running_requests() == 0

    is_freed = await until(is_idle, site.bounds.freed_s)
    row.within("engine freed", None if is_freed is None else time.monotonic() - at, site.bounds.freed_s)
    await site.yard.ready()


async def kill_yard(site: Site, row: Row) -> None:
    """Five seconds later nothing of it is left, and the same start works again."""
    await site.under_load()
    at, recorded, ports = await _kill_yard(site, row)

    def is_gone() -> bool:
        return not _remains(site, recorded, ports)

    is_clean = await until(is_gone, at + site.bounds.gone_s - time.monotonic())
    row.within("nothing left", None if is_clean is None else time.monotonic() - at, site.bounds.gone_s)
    for what in _remains(site, recorded, ports):
        row.wrong(f"left after {site.bounds.gone_s:g} s: {what}")
    await _serves_again(site, row)


async def kill_yard_and_start(site: Site, row: Row) -> None:
    """Started again before the lease has run out: what still lives is taken over or gone, never doubled."""
    await site.under_load()
    await _kill_yard(site, row)
    await asyncio.sleep(site.rng.uniform(0.0, site.yard.lease_s))
    await _serves_again(site, row)


async def kill_yard_that_starts(site: Site, row: Row) -> None:
    """Killed again while it starts, and once more started: nothing half made stands in its way."""
    await site.under_load()
    await _kill_yard(site, row)
    await asyncio.sleep(site.rng.choice((0.0, site.yard.lease_s)))
    await _start(site, row)
    await asyncio.sleep(site.rng.uniform(0.0, site.load_s + 0.5))
    site.yard.kill()
    await _serves_again(site, row)


async def _kill_yard(site: Site, row: Row) -> tuple[float, frozenset[Process], frozenset[int]]:
    recorded = site.yard.processes()
    ports = kills_processes.listening_ports(recorded)
    first = len(site.load.answers)
    site.load.hold()
    row.kills += 1
    row.in_flight += site.load.in_flight
    site.yard.kill()
    at = time.monotonic()
    await site.load.quiet()
    check_resets(site, row, first, at)
    return at, recorded, ports


def _remains(site: Site, recorded: frozenset[Process], ports: frozenset[int]) -> list[str]:
    """What is there that should not be, in words."""
    state = site.yard.state
    living = {one for one in recorded if one.lives} | kills_processes.of_state(state.root)
    return [
        *(f"process {one.pid}: {one.words[:120]}" for one in living),
        *(f"port {port}" for port in ports if kills_processes.is_listening(port)),
        *(f"socket {name}" for name in kills_processes.unix_sockets(state.sockets)),
    ]


async def _serves_again(site: Site, row: Row) -> None:
    began = time.monotonic()
    await _start(site, row)
    started_at, bound_s = time.monotonic(), site.ready_again_s + site.bounds.recovered_s
    is_serving = await until(site.is_answered, bound_s, every_s=0.1)
    row.within("serves again", None if is_serving is None else time.monotonic() - began, bound_s)
    for answer in site.load.answers:
        if answer.sent_at > started_at and answer.verdict not in ("whole", "unavailable"):
            row.wrong(f"a question after the start: {answer.verdict} {answer.detail}")
    await site.yard.ready()
    if not site.yard.state.rendezvous.is_socket():
        row.wrong("the shims' socket is not there after the start")
    _check_engines(site, row)


async def _start(site: Site, row: Row) -> None:
    try:
        site.yard.start()
    except CannotMeasure as refused:
        row.wrong(str(refused))
        await asyncio.sleep(site.bounds.gone_s)
        site.yard.start()


def _check_engines(site: Site, row: Row) -> None:
    """One engine per replica, and no shim or engine beside them."""
    engines = site.yard.engines()
    known = {one.pid for engine in engines for one in (engine.shim, *engine.members)}
    children = {site.yard.pid, site.yard.child("control").pid, site.yard.child("gateway").pid}
    others = [one for one in site.yard.processes() if one.pid not in known | children and not _is_guard(one)]
    if len(engines) != site.replicas or others:
        row.wrong(f"{len(engines)} engines for {site.replicas} replicas, besides: {[one.words for one in others]}")


def _is_guard(one: Process) -> bool:
    """An engine's guard is a sleeping fork of its shim."""
    return kills_processes.name(one.pid) == "engine-guard"


def _by_replica(engines: list[RunningEngine]) -> dict[str, RunningEngine]:
    return {one.replica: one for one in engines}


def _any_lives(processes: tuple[Process, ...]) -> bool:
    return any(one.lives for one in processes)


CAMPAIGNS: dict[str, Campaign] = {
    "engine": kill_engine,
    "shim": kill_shim,
    "control": kill_control,
    "engine, then control": kill_engine_then_control,
    "gateway": kill_gateway,
    "yard": kill_yard,
    "yard, started at once": kill_yard_and_start,
    "yard that starts": kill_yard_that_starts,
    "engine stopped": stop_engine,
}
