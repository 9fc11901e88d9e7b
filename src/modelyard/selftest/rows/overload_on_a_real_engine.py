"""Rows 4 to 6 once more, with two replicas of the packaged model that share the cores with the gateway and the clients,
at a lower priority. What they can do is measured first, by as many clients as there are seats."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.open_load import Question, kept_busy, p99_s
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.real_engines import SOURCES, real_engines
from modelyard.selftest.row import CannotRun, Row
from modelyard.selftest.rows import overload
from modelyard.selftest.rows.overload import REPLICAS, TOKENS, Site, first_s

QUEUE_TIMEOUT_S = 4.0
# The first answers after a start are slower than what follows.
WARM_S, MEASURED_S = 3.0, 12.0
QUESTION = Question(TOKENS, prompt="Write a long list of words, and say nothing else before it.")


@asynccontextmanager
async def loaded(bench: Bench) -> AsyncGenerator[Site]:
    async with real_engines(REPLICAS) as engines:
        seats = engines.sequences
        started = [await engines.start(number) for number in range(REPLICAS)]
        replicas = (replica(one.address, f"r{number}", max_in_flight=seats) for number, one in enumerate(started))
        gateway = await bench.gateway(deployment(*replicas, queue_timeout_s=QUEUE_TIMEOUT_S, **engines.facts))
        await kept_busy(gateway, QUESTION, REPLICAS * seats, WARM_S, bench.rng)
        ended = await kept_busy(gateway, QUESTION, REPLICAS * seats, MEASURED_S, bench.rng)
        if wrong := [one for one in ended if one.status != 200 or not one.is_right]:
            raise CannotRun(f"the engines do not answer: {wrong[0]}", hint="modelyard up smollm2 says more")
        lasted_s = max(one.began_s + one.took_s for one in ended)
        yield Site(gateway, QUESTION, len(ended) / lasted_s, QUEUE_TIMEOUT_S + p99_s([one.took_s for one in ended]))


def on_real_engines(tried: Callable[[Bench, Site], Awaitable[Outcome]]) -> Callable[[Bench], Awaitable[Outcome]]:
    async def run(bench: Bench) -> Outcome:
        async with loaded(bench) as site:
            return await tried(bench, site)

    return run


async def fairness(bench: Bench, site: Site) -> Outcome:
    """An engine computes one step for all its seats: the fuller it is, the later is any first token, and no order at
    the door changes that. What the gateway adds to B's is bounded as in the twin; what the engine adds is told."""
    tally = Tally()
    alone, beside = await overload.beside_a_flood(bench, site, tally)
    waited_s = {record.request_id: record.queued_s for record in site.gateway.records()}
    added = p99_s([waited_s[one.request_id] for one in beside if one.status == 200]) / p99_s(first_s(alone))
    slower = p99_s(first_s(beside)) / p99_s(first_s(alone))
    tally.figure("B's wait for a seat, p99, of its first token alone", added, at_most=0.5)
    tally.figure("B's first token, p99, of alone, with what the fuller engine adds", slower)
    bench.progress(tally.tried(bench.size))
    return tally.outcome()


_FAIRNESS = (
    "Of another tenant's requests within its share at least 99.5 % are answered; their wait for a seat (p99) is at "
    "most half of the time to the first token alone. How much later that comes from an engine with more to compute is "
    "told."
)
ROWS = tuple(
    Row(
        key=f"{twin.key}-real",
        name=f"{twin.name}, real engines",
        claim=claim,
        unit=twin.unit,
        full=full,
        short=0,
        run=on_real_engines(tried),
        sources=("gateway", *SOURCES),
        takes_s=takes_s,
    )
    for twin, claim, tried, full, takes_s in (
        (overload.GOODPUT, overload.GOODPUT.claim, overload.goodput_of, 120, 390),
        (overload.AFTERMATH, overload.AFTERMATH.claim, overload.aftermath_of, 50, 150),
        (overload.FAIRNESS, _FAIRNESS, fairness, 75, 180),
    )
)
