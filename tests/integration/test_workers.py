"""Several gateway workers on one socket: caps hold over all of them, and each may be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from reload_load import BusyClients

from modelyard.cli.admin import gateways
from modelyard.state import StateDirectory
from yards import RunningYard, fake_wanted, running_yard

Eventually = Callable[..., Awaitable[Any]]
WORKERS = 3
CAP = 2


@asynccontextmanager
async def yard_of_workers(state: StateDirectory, eventually: Eventually, **knobs: Any) -> AsyncGenerator[RunningYard]:
    options = ("--port", "0", "--workers", str(WORKERS))
    async with running_yard(state, fake_wanted(**{"max_in_flight": CAP, **knobs}), options=options) as yard:
        await yard.make_key()
        await yard.open()
        await eventually(lambda: all_ready(state), what="all workers serve")
        yield yard


def all_ready(state: StateDirectory) -> bool:
    seen = gateways(state)
    return seen is not None and len(seen.serving) == WORKERS and all(one.is_ready for one in seen.serving)


def pids(state: StateDirectory) -> list[int]:
    seen = gateways(state)
    assert seen is not None
    return [one.pid for one in seen.serving]


def owner(state: StateDirectory) -> int:
    """The worker that owns admission, as the kernel tells by its lock."""
    inode = state.admission.with_suffix(".lock").stat().st_ino
    with open("/proc/locks") as table:
        for line in table:
            words = line.split()
            if "->" not in words and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return int(words[4])
    return 0


async def watch_the_cap(yard: RunningYard, stop: asyncio.Event) -> int:
    """The most requests that the engine had at once, as far as looking at it all the time tells."""
    most = 0
    while not stop.is_set():
        counters = (await yard.engine("GET", "/fake/seen"))["counters"]
        most = max(most, counters["running"] + counters["waiting"])
    return most


async def test_all_workers_answer_and_the_cap_holds_over_them(state: StateDirectory, eventually: Eventually) -> None:
    async with yard_of_workers(state, eventually, token_interval_s=0.004) as yard:
        stop = asyncio.Event()
        watching = asyncio.create_task(watch_the_cap(yard, stop))
        async with BusyClients(yard, keep_alive=6, fresh=6) as clients:
            await eventually(lambda: clients.failures or len({one.worker for one in yard.journal()}) == WORKERS)
            await clients.more(60)
        stop.set()
        assert clients.failures == []
        assert await watching == CAP
        complete = [one for one in yard.journal() if one.outcome == "complete"]
        assert len(complete) == clients.answered
        assert await yard.stop() == 0
    assert list(state.sockets.iterdir()) == []


async def test_a_killed_worker_takes_only_its_own_connections_along(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with yard_of_workers(state, eventually, token_interval_s=0.004) as yard:
        async with BusyClients(yard, keep_alive=6, fresh=6) as clients:
            for kill in range(6):
                await clients.more(20)
                clients.forgive_resets(most=CAP + 12)
                victim = owner(state) if kill % 2 == 0 else next(pid for pid in pids(state) if pid != owner(state))
                os.kill(victim, signal.SIGKILL)
                await eventually(lambda victim=victim: victim not in pids(state) and all_ready(state))
            await clients.more(40)
        assert clients.failures == [], "everything but resets of connections to the killed worker is answered"
        # Had one seat been lost at each kill, none would be left; had one been given twice, there would be more.
        stop = asyncio.Event()
        watching = asyncio.create_task(watch_the_cap(yard, stop))
        async with BusyClients(yard, keep_alive=6, fresh=6) as clients:
            await clients.more(60)
        stop.set()
        assert await watching == CAP and clients.failures == []


async def test_a_reload_replaces_all_workers_and_no_request_fails(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with yard_of_workers(state, eventually, token_interval_s=0.002) as yard:
        before = pids(state)
        stop = asyncio.Event()
        watching = asyncio.create_task(watch_the_cap(yard, stop))
        async with BusyClients(yard, keep_alive=6, fresh=6) as clients:
            for reloads in (1, 2):
                await clients.more(40)
                yard.process.send_signal(signal.SIGHUP)
                await eventually(lambda reloads=reloads: (gateways(state) or _none()).reloads == reloads)
            await clients.more(40)
            await eventually(lambda: not (gateways(state) or _none()).leaving)
        stop.set()
        assert clients.failures == [] and clients.idle_closes == 0
        assert set(before).isdisjoint(pids(state))
        assert await watching == CAP, "who steps aside tells the next ones what it holds"


def _none() -> Any:
    raise AssertionError("yard says nothing of its gateways")
