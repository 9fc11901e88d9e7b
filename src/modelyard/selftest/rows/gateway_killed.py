"""The gateway is killed with many streams on it; another one takes the same listening socket, as yard has it."""

from __future__ import annotations

import asyncio
import time

from modelyard.selftest.asking import Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Connection, Lost, chat
from modelyard.selftest.engines import Engine, Engines, Fakes
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

STREAMS, LATE = 100, 10
WITHIN_S = 2.0
DEADLINE_S = 30.0
# Far more than comes before the kill.
ENDLESS_TOKENS = 4000
LATE_TOKENS = 2
PROMPT = "Write a very long and detailed story about a lighthouse. Do not end soon."
CLAIM = (
    "Each of its streams is reset, none ends as if it were whole; the next gateway answers within 2 s; the engine "
    "works for nobody after 2 s; whoever connects meanwhile is answered."
)


async def run(bench: Bench) -> Outcome:
    engines = Fakes(bench, STREAMS + LATE, token_interval_s=0.05, tokens=ENDLESS_TOKENS)
    return await kill_before(bench, engines, streams=STREAMS, late=LATE)


async def kill_before(bench: Bench, engines: Engines, *, streams: int, late: int) -> Outcome:
    """Kill gateways before one engine, each with so many streams; so many clients come while it is dead."""
    tally = Tally()
    bound_s = WITHIN_S * 10 if bench.short else WITHIN_S
    engine = await engines.start()
    only = replica(engine.address, max_in_flight=engines.sequences)
    gateway = await bench.gateway(deployment(only, **engines.facts))
    accepts_s, free_s = list[float](), list[float]()
    for kill in range(bench.size):
        body = chat(MODEL, stream=True, tokens=ENDLESS_TOKENS, content=PROMPT)
        under_way = await bench.streams(gateway, body, streams, DEADLINE_S)
        await asyncio.sleep(bench.rng.uniform(0.0, 0.5))
        gateway.kill()
        killed_at = time.monotonic()
        # Whoever connects now waits in the backlog of a socket that did not die.
        came_late = [asyncio.create_task(_late(gateway, engines)) for _ in range(late)]
        freed = asyncio.create_task(until(lambda: _is_idle(engine), DEADLINE_S))
        await gateway.start()
        accepts_s.append(time.monotonic() - killed_at)
        for stream in under_way:
            await _ends(stream, tally, f"kill {kill}")
        for task in came_late:
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


async def _late(gateway: GatewayProcess, engines: Engines) -> Asked:
    body = chat(MODEL, tokens=LATE_TOKENS)
    return await ask(gateway, body, within_s=DEADLINE_S, expected=engines.text(LATE_TOKENS))


async def _is_idle(engine: Engine) -> bool:
    return await engine.working() == 0


ROW = Row(
    key="17",
    name=f"the gateway is killed with {STREAMS} streams",
    claim=CLAIM,
    unit="kills",
    full=50,
    short=1,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=40,
)
