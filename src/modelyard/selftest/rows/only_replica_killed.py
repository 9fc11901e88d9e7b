"""The only replica of a deployment is killed with requests on it, and asked again while it is dead."""

from __future__ import annotations

import asyncio
import itertools
from time import monotonic

from modelyard.selftest.asking import Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import chat
from modelyard.selftest.engines import Engines, Fakes
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row

IN_FLIGHT = 4
REFUSED_WITHIN_S = 0.1
TOLD_WITHIN_S = 1.0
DEADLINE_S = 30.0
TOKENS = 40
CLAIM = (
    "Requests on it end in 503 with Retry-After, or in an error event where the answer had begun, within 1 s; while it "
    "is dead "
    "every request is refused by 503 with Retry-After within 100 ms; none hangs; a new launch is served."
)


async def run(bench: Bench) -> Outcome:
    return await kill_on(bench, Fakes(bench, IN_FLIGHT, token_interval_s=0.01), strike_s=(0.02, 0.3))


async def kill_on(bench: Bench, engines: Engines, strike_s: tuple[float, float]) -> Outcome:
    """Each kill comes so long after its requests were sent."""
    tally, refusals_s, told_s = Tally(), list[float](), list[float]()
    gateway = await bench.gateway()
    asking = _Asking(gateway, engines)
    for kill in range(bench.size):
        engine = await engines.start()
        only = replica(engine.address, launch=f"l{kill}")
        gateway.publish(deployment(only, retry_after_s=1, **engines.facts))
        served = await until(asking.is_served, DEADLINE_S)
        tally.expect(served is not None, f"kill {kill}: not served again within {DEADLINE_S:g} s of a new launch")
        async with asyncio.TaskGroup() as group:
            began = monotonic()
            under_way = [group.create_task(asking.ask(stream=number % 2 == 0)) for number in range(IN_FLIGHT)]
            await asyncio.sleep(bench.rng.uniform(*strike_s))
            struck_s = monotonic() - began
            engine.kill()
            await engine.ended()
        for task in under_way:
            _judge(task.result(), tally, f"kill {kill}, in flight")
            told_s.append(task.result().took_s - struck_s)
        for stream in (False, True):
            asked = await asking.ask(stream=stream)
            _judge(asked, tally, f"kill {kill}, while it is dead")
            tally.expect(asked.verdict == "unavailable", f"kill {kill}: a dead engine answered {asked.detail}")
            refusals_s.append(asked.took_s)
        bench.progress(tally.tried())
    tally.figure("refusal, p50", quantile(refusals_s, 0.5) * 1e3, "ms")
    patience = 20 if bench.short else 1
    tally.figure("refusal, slowest", max(refusals_s) * 1e3, "ms", at_most=1e3 * patience * REFUSED_WITHIN_S)
    tally.figure("end after the kill, slowest", max(told_s), "s", at_most=patience * TOLD_WITHIN_S)
    return tally.outcome()


class _Asking:
    """Each request is another one: what is there whenever an engine ends is refused as poison."""

    def __init__(self, gateway: GatewayProcess, engines: Engines) -> None:
        self._gateway, self._engines = gateway, engines
        self._numbers = itertools.count()

    async def ask(self, *, stream: bool, tokens: int = TOKENS) -> Asked:
        content = f"Tell me about the number {next(self._numbers)}."
        body = chat(MODEL, stream=stream, tokens=tokens, content=content)
        return await ask(self._gateway, body, within_s=DEADLINE_S, expected=self._engines.text(tokens))

    async def is_served(self) -> bool:
        return (await self.ask(stream=False, tokens=1)).verdict == "whole"


def _judge(asked: Asked, tally: Tally, where: str) -> None:
    tally.saw(asked.verdict)
    tally.expect(asked.verdict in ("whole", "cut", "unavailable"), f"{where}: {asked.verdict}: {asked.detail}")


ROW = Row(
    key="10",
    name="the only replica is killed",
    claim=CLAIM,
    unit="kills",
    full=50,
    short=2,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=15,
)
