"""The only replica of a deployment is killed with requests on it, and asked again while it is dead."""

from __future__ import annotations

import asyncio

from modelyard.selftest.asking import Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import chat
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row

IN_FLIGHT = 4
REFUSED_WITHIN_S = 0.1
DEADLINE_S = 10.0
TOKENS = 40
TEXT = " ".join(f"w{index}" for index in range(TOKENS))


async def run(bench: Bench) -> Outcome:
    tally, refusals_s = Tally(), list[float]()
    address = f"unix:{bench.state.sockets / 'engine.sock'}"
    gateway = await bench.gateway(deployment(replica(address), retry_after_s=1))
    for kill in range(bench.size):
        engine = await bench.engine(address=address, token_interval_s=0.01)
        gateway.publish(deployment(replica(address, launch=f"l{kill}"), retry_after_s=1))
        served = await until(lambda: _is_served(gateway), DEADLINE_S)
        tally.expect(served is not None, f"kill {kill}: not served again within {DEADLINE_S:g} s of a new launch")
        async with asyncio.TaskGroup() as group:
            under_way = [
                group.create_task(_ask(gateway, f"kill {kill}, {number}", stream=number % 2 == 0))
                for number in range(IN_FLIGHT)
            ]
            await asyncio.sleep(bench.rng.uniform(0.02, 0.3))
            engine.kill()
            await engine.ended()
        for task in under_way:
            _judge(task.result(), tally, f"kill {kill}, in flight")
        for stream in (False, True):
            asked = await _ask(gateway, f"kill {kill}, dead", stream=stream)
            _judge(asked, tally, f"kill {kill}, while it is dead")
            tally.expect(asked.verdict == "unavailable", f"kill {kill}: a dead engine answered {asked.detail}")
            refusals_s.append(asked.took_s)
        bench.progress(tally.tried())
    tally.figure("refusal, p50", quantile(refusals_s, 0.5) * 1e3, "ms")
    slowest_ms = 1e3 * (REFUSED_WITHIN_S * 20 if bench.short else REFUSED_WITHIN_S)
    tally.figure("refusal, slowest", max(refusals_s) * 1e3, "ms", at_most=slowest_ms)
    return tally.outcome()


async def _ask(gateway: GatewayProcess, prompt: str, *, stream: bool) -> Asked:
    """Each prompt another one: what is there whenever an engine dies would be refused as poison."""
    body = chat(MODEL, stream=stream, tokens=TOKENS, content=prompt)
    return await ask(gateway, body, within_s=DEADLINE_S, expected=TEXT)


async def _is_served(gateway: GatewayProcess) -> bool:
    answer = await ask(gateway, chat(MODEL, tokens=1), within_s=DEADLINE_S, expected="w0")
    return answer.verdict == "whole"


def _judge(asked: Asked, tally: Tally, where: str) -> None:
    tally.saw(asked.verdict)
    tally.expect(asked.verdict in ("whole", "cut", "unavailable"), f"{where}: {asked.verdict}: {asked.detail}")


ROW = Row(
    key="10",
    name="the only replica is killed",
    claim="Requests on it end in 503 with Retry-After, or in an error event where the answer had begun; while it is "
    "dead every request is refused by 503 with Retry-After within 100 ms; none hangs; a new launch is served.",
    unit="kills",
    full=50,
    short=2,
    run=run,
    sources=("gateway", "records", "testing"),
    takes_s=60,
)
