"""Adaptive seats before a real engine process that takes all requests and works on few: the rest waits before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import openai
from gateway_child import MODEL, Gateway, deployment, replica

from modelyard.observe.replay import replay
from modelyard.state import StateDirectory
from modelyard.testing import FakeEngine

Eventually = Callable[..., Awaitable[object]]
CLIENTS = 16


async def ask_forever(client: openai.AsyncOpenAI) -> None:
    while True:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "count"}], max_tokens=2, stream=True
        )
        async for _ in stream:
            pass


def limit(gateway: Gateway) -> int:
    """That of the last answered request's replica, as it was chosen."""
    decisions = [record.decision for record in gateway.records() if record.decision is not None]
    return decisions[-1].candidates[0].max_in_flight


def is_open(gateway: Gateway) -> bool:
    with gateway.wire() as wire:
        return wire.ask(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").status == 200


async def test_what_an_engine_only_queues_waits_before_it_until_it_has_room(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with FakeEngine(max_sequences=1, token_interval_s=0.05) as engine:
        with Gateway(state) as gateway:
            gateway.publish(deployment(replica(engine.address, max_in_flight=CLIENTS), overload_wait_s=30.0))
            await eventually(lambda: is_open(gateway))
            async with gateway.client() as client, asyncio.TaskGroup() as tasks:
                asking = [tasks.create_task(ask_forever(client))]
                await eventually(lambda: len(gateway.records()) >= 3, what="three answers")
                asking += [tasks.create_task(ask_forever(client)) for _ in range(CLIENTS - 1)]
                await eventually(lambda: limit(gateway) <= 10, within_s=60, what="seats are kept back")
                counters = (await engine.seen())["counters"]
                assert counters["running"] + counters["waiting"] <= 14
                await engine.set(max_sequences=CLIENTS)
                await eventually(lambda: limit(gateway) > 12, within_s=60, what="seats are given again")
                for one in asking:
                    one.cancel()
            records = gateway.records()
    assert {record.status for record in records} <= {200, 499}
    replayed = replay(records)
    assert replayed.decisions > 100
    assert (replayed.differ, replayed.entries_differ) == (0, 0)
