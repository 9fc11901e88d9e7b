"""The gateway is killed with a hundred streams on it; another one takes the same listening socket, as yard has it."""

from __future__ import annotations

import asyncio
import time

from modelyard.selftest.asking import CHAT, Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Connection, Lost, chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.testing import FakeEngine

STREAMS = 100
WITHIN_S = 2.0
DEADLINE_S = 30.0
LATE = 10


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    bound_s = WITHIN_S * 10 if bench.short else WITHIN_S
    engine = await bench.engine(token_interval_s=0.05, tokens=4000, max_sequences=STREAMS + LATE)
    gateway = await bench.gateway(deployment(replica(engine, max_in_flight=STREAMS + LATE)))
    accepts_s, free_s = list[float](), list[float]()
    for kill in range(bench.size):
        streams = await _streams(bench, gateway)
        await asyncio.sleep(bench.rng.uniform(0.0, 0.5))
        gateway.kill()
        killed_at = time.monotonic()
        # Whoever connects now waits in the backlog of a socket that did not die.
        late = [asyncio.create_task(_late(gateway)) for _ in range(LATE)]
        freed = asyncio.create_task(until(lambda: _works_for_latecomers_only(engine), DEADLINE_S))
        await gateway.start()
        accepts_s.append(time.monotonic() - killed_at)
        for stream in streams:
            await _ends(stream, tally, f"kill {kill}")
        for task in late:
            asked = await task
            tally.saw(f"while it is dead: {asked.verdict}")
            tally.expect(asked.verdict == "whole", f"kill {kill}, while it is dead: {asked.verdict} {asked.detail}")
        took_s = await freed
        tally.expect(took_s is not None, f"kill {kill}: the engine still works for nobody")
        free_s.append(took_s if took_s is not None else DEADLINE_S)
        bench.progress(tally.tried())
    tally.figure("the next one answers, slowest", max(accepts_s), "s", at_most=bound_s)
    tally.figure("the engine is free, slowest", max(free_s), "s", at_most=bound_s)
    return tally.outcome()


async def _streams(bench: Bench, gateway: GatewayProcess) -> list[Connection]:
    """Each of them under way: bytes of its answer have come."""
    streams = [await bench.connect(gateway) for _ in range(STREAMS)]
    for stream in streams:
        stream.send(post(CHAT, gateway.key, chat(MODEL, stream=True, tokens=4000)))
    for stream in streams:
        await stream.body_has(1, DEADLINE_S)
    return streams


async def _ends(stream: Connection, tally: Tally, where: str) -> None:
    """A reset, and nothing that could be taken for the end of an answer."""
    try:
        await stream.response(DEADLINE_S)
    except Lost:
        tally.saw("own stream: reset")
        tally.expect(b"[DONE]" not in stream.body, f"{where}: a false [DONE]")
    except TimeoutError:
        tally.wrong(f"{where}: a stream that hangs")
    else:
        tally.wrong(f"{where}: a stream that ended as if it were whole")
    stream.close()


async def _late(gateway: GatewayProcess) -> Asked:
    return await ask(gateway, chat(MODEL, tokens=2), within_s=DEADLINE_S, expected="w0 w1")


async def _works_for_latecomers_only(engine: FakeEngine) -> bool:
    counters = (await engine.seen())["counters"]
    return counters["running"] + counters["waiting"] <= LATE


ROW = Row(
    key="17",
    name="the gateway is killed",
    claim=f"Of {STREAMS} streams each is reset, none ends as if it were whole; the next gateway answers within 2 s; "
    "the engine works for none of them after 2 s; whoever connects meanwhile is answered.",
    unit="kills",
    full=50,
    short=1,
    run=run,
    sources=("gateway", "records", "testing", "lifeline.py"),
    takes_s=150,
)
