"""A replica that says nothing for a while, in front of a real gateway: the other one's answer comes instead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import openai
import pytest
from gateway_child import MODEL, Gateway, deployment, replica

from modelyard.gateway.hedging import FLOOR_S, VOLUME
from modelyard.records.topology import Failover
from modelyard.state import StateDirectory
from modelyard.testing import FakeEngine, Fault, FaultProxy

Eventually = Callable[..., Awaitable[object]]
TOKENS = 4
WHOLE = "w0 w1 w2 w3"
# Long enough that an answer before its end can only be the other one's.
PAUSE_S = 8.0


async def streamed(client: openai.AsyncOpenAI) -> str:
    """The text of one answer, and that it was whole."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "count"}], stream=True, max_tokens=TOKENS
    )
    text, reason = "", None
    async for piece in stream:
        for choice in piece.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    assert reason == "length"
    return text.strip()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with FakeEngine() as engine, FaultProxy(engine.address) as proxy:
        yield proxy


async def test_a_replica_that_pauses_is_not_waited_for(
    state: StateDirectory, proxy: FaultProxy, eventually: Eventually
) -> None:
    share = 0.1
    async with FakeEngine() as engine:
        with Gateway(state) as gateway:
            failover = Failover(hedge_share=share)
            gateway.publish(
                deployment(replica(proxy.address, "pauses"), replica(engine.address, "steady"), failover=failover)
            )
            await eventually(lambda: _is_ready(gateway))
            async with gateway.client() as client:
                for _ in range(2 * VOLUME):
                    assert await streamed(client) == WHOLE
                await proxy.plan(Fault("latency", delay_s=PAUSE_S))
                for _ in range(4):
                    assert await streamed(client) == WHOLE
            records = gateway.records()
            hedged = [one for one in records if any(tried.kind == "outrun" for tried in one.tried)]
            assert 1 <= len(hedged) <= share * len(records)
            for record in hedged:
                assert (record.outcome, record.replica, record.attempts) == ("complete", "steady", 2)
                assert FLOOR_S <= record.first_byte_s < PAUSE_S
                [tried] = record.tried
                assert (tried.replica, tried.cause) == ("pauses", "")
                assert (record.usage_source, record.completion_tokens) == ("engine", TOKENS), "one answer is counted"
            # What says nothing is told that nobody waits by the end of its connection.
            await eventually(lambda: _is_left(proxy, len(hedged)))


def _is_ready(gateway: Gateway) -> bool:
    with gateway.wire() as wire:
        return wire.ask(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").status == 200


async def _is_left(proxy: FaultProxy, times: int) -> bool:
    return [one["ended"] for one in await proxy.seen()].count("client left") >= times
