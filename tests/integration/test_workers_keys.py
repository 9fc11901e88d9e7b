"""What a key may use holds over several workers of a real yard, also when one of them is killed or stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from test_workers import WORKERS, all_ready, owner, pids, yard_of_workers

from modelyard.state import StateDirectory
from yards import CHAT, RunningYard

Eventually = Callable[..., Awaitable[Any]]
LIMIT = 30


async def new_key(yard: RunningYard, **bounds: int) -> str:
    status, made = await yard.admin("POST", "/keys", {"name": "bounded", **bounds})
    assert status == 200, made
    await yard.gateway_follows()
    return made["key"]


@dataclass(frozen=True)
class Asked:
    status: int
    headers: dict[str, str]
    body: str


async def ask(yard: RunningYard, key: str, kept: aiohttp.ClientSession | None = None) -> Asked:
    """Over a connection of its own, which any worker may take, or over one that is kept."""
    async with contextlib.AsyncExitStack() as stack:
        http = kept or await stack.enter_async_context(connection())
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        url, headers = f"{yard.listening.url}{CHAT}", {"authorization": f"Bearer {key}"}
        async with http.post(url, json=body, headers=headers) as answer:
            told = {name.lower(): value for name, value in answer.headers.items()}
            return Asked(answer.status, told, await answer.text())


def connection() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=600))


@asynccontextmanager
async def one_for_each_worker(yard: RunningYard) -> AsyncGenerator[list[aiohttp.ClientSession]]:
    async with contextlib.AsyncExitStack() as stack:
        kept: dict[str, aiohttp.ClientSession] = {}
        while len(kept) < WORKERS:
            http = await stack.enter_async_context(connection())
            answer = await ask(yard, yard.key, http)
            kept.setdefault(worker_of(answer.headers["x-request-id"]), http)
        yield list(kept.values())


def worker_of(request_id: str) -> str:
    return request_id.removeprefix("req_")[:8]


def pid_of(state: StateDirectory, worker: str) -> int:
    """The process that has this worker's journal open."""
    name = f"gateway-{worker}.ndjson"
    for pid in pids(state):
        if any(os.readlink(one).endswith(name) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()):
            return pid
    raise AssertionError(f"nobody writes {name}")


async def test_a_keys_limit_holds_over_all_workers(state: StateDirectory, eventually: Eventually) -> None:
    async with yard_of_workers(state, eventually, max_in_flight=64) as yard:
        key = await new_key(yard, requests_per_minute=LIMIT)
        async with one_for_each_worker(yard) as kept:
            answers = await asyncio.gather(*(ask(yard, key, http) for _ in range(LIMIT) for http in kept))
        granted = [one for one in answers if one.status == 200]
        refused = [one for one in answers if one.status == 429]
        assert (len(granted), len(refused)) == (LIMIT, (WORKERS - 1) * LIMIT)
        for one in refused:
            assert one.headers["x-ratelimit-remaining-requests"] == "0" and int(one.headers["retry-after"]) > 50
        assert {one.headers["x-ratelimit-limit-requests"] for one in granted} == {str(LIMIT)}
        left = sorted(int(one.headers["x-ratelimit-remaining-requests"]) for one in granted)
        assert left == list(range(LIMIT)), "each was told what was left after it"
        assert len({worker_of(one.headers["x-request-id"]) for one in answers}) == WORKERS

        # Whoever is killed, the next owner knows by the journal what was used of the minute.
        for _ in range(2):
            victim = owner(state)
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda victim=victim: victim not in pids(state) and all_ready(state))
            again = await asyncio.gather(*(ask(yard, key) for _ in range(6)))
            assert {one.status for one in again} == {429}


async def kill_who_streams(yard: RunningYard, key: str, *, owns: bool) -> None:
    """Let the key's only request be a stream of the owner, or of another worker, and kill that one."""
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8000, "stream": True}
    url, headers = f"{yard.listening.url}{CHAT}", {"authorization": f"Bearer {key}"}
    while True:
        async with connection() as http, http.post(url, json=body, headers=headers) as answer:
            if answer.status != 200:
                continue
            victim = pid_of(yard.state, worker_of(answer.headers["x-request-id"]))
            if (victim == owner(yard.state)) != owns:
                continue
            refused = await ask(yard, key)
            assert refused.status == 429 and "1 requests at once" in refused.body
            os.kill(victim, signal.SIGKILL)
            return


async def test_what_a_killed_worker_held_is_free(state: StateDirectory, eventually: Eventually) -> None:
    async with yard_of_workers(state, eventually, token_interval_s=0.004) as yard:
        key = await new_key(yard, concurrent_requests=1)

        async def is_free() -> bool:
            return (await ask(yard, key)).status == 200

        for owns in (True, False):
            await kill_who_streams(yard, key, owns=owns)
            await eventually(is_free)
            await eventually(lambda: all_ready(state))


async def test_a_stopped_owner_is_told_of_and_replaced(state: StateDirectory, eventually: Eventually) -> None:
    async with yard_of_workers(state, eventually) as yard:
        key = await new_key(yard, concurrent_requests=8)
        assert (await ask(yard, key)).status == 200
        stopped = owner(state)
        os.kill(stopped, signal.SIGSTOP)
        answer = await ask(yard, key)
        assert answer.status == 503 and "owner_silent" in answer.body, answer.body
        assert answer.headers["retry-after"] == "1"
        await eventually(lambda: stopped not in pids(state) and all_ready(state))
        assert owner(state) != stopped and len(pids(state)) == WORKERS
        answers = await asyncio.gather(*(ask(yard, key) for _ in range(8)))
        assert [one.status for one in answers] == [200] * 8
        assert "has given no sign of life for 10 s; it is killed" in yard.log("yard")
