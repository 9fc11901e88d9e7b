"""Rows 4 to 6: more requests than there is room for, the time after it, and one tenant who sends most of them.

The engines are FakeEngines: their rate is known, so that a load of 10 times as much is one, and no engine takes the
cores of the gateway and of the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.open_load import Ended, Offer, note, offered, p99_s
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

REPLICAS, SEATS, TOKENS = 2, 8, 16
PREFILL_S, TOKEN_INTERVAL_S = 0.05, 0.02
SERVICE_S = PREFILL_S + TOKENS * TOKEN_INTERVAL_S
CAPACITY_PER_S = REPLICAS * SEATS / SERVICE_S
QUEUE_TIMEOUT_S = 2.0
DEADLINE_S = QUEUE_TIMEOUT_S + SERVICE_S
LOADS = (1, 3, 10)
REFUSED_WITHIN_MS = 50.0
LEAST_GOODPUT = 0.9
SETTLED_AFTER_S = 5.0
CALM_LOAD = 0.5
MODEST_PART = 0.25


async def _gateway(bench: Bench, **policy: Any) -> GatewayProcess:
    engines = [
        await bench.engine(max_sequences=SEATS, prefill_s=PREFILL_S, token_interval_s=TOKEN_INTERVAL_S)
        for _ in range(REPLICAS)
    ]
    replicas = (replica(engine, f"r{number}", max_in_flight=SEATS) for number, engine in enumerate(engines))
    return await bench.gateway(deployment(*replicas, queue_timeout_s=QUEUE_TIMEOUT_S, **policy))


async def goodput(bench: Bench) -> Outcome:
    """1, 3 and 10 times what the engines can do, `size` seconds each."""
    tally, gateway = Tally(), await _gateway(bench)
    good: dict[int, float] = {}
    refused_s: list[float] = []
    for load in LOADS:
        offer = Offer(gateway.key, load * CAPACITY_PER_S, TOKENS)
        (ended,) = await offered(gateway, [offer], bench.size, bench.rng)
        note(ended, f"{load} times", tally)
        in_time = [one for one in ended if one.status == 200 and one.took_s <= DEADLINE_S + 1]
        late = sum(one.status == 200 for one in ended) - len(in_time)
        tally.expect(late == 0, f"{load} times: {late} accepted requests ended 1 s after their deadline or later")
        good[load] = len(in_time) / bench.size
        refused_s += [one.took_s for one in ended if one.status in (429, 503) and _was_refused_at_once(one)]
        tally.figure(f"answers in time, {load} times", good[load], "/s")
    bench.progress(tally.tried(bench.size))
    least = 0.0 if bench.short else LEAST_GOODPUT
    tally.figure("goodput at 10 times, of the best", good[LOADS[-1]] / max(good.values()), at_least=least)
    slowest_ms = REFUSED_WITHIN_MS * (100 if bench.short else 1)
    tally.figure("refused after, p99", p99_s(refused_s) * 1e3, "ms", at_most=slowest_ms)
    return tally.outcome()


def _was_refused_at_once(one: Ended) -> bool:
    """Who had a place in the queue and was turned away at its deadline waited for that; it was not refused at the
    door."""
    return one.took_s < QUEUE_TIMEOUT_S * 0.9


async def aftermath(bench: Bench) -> Outcome:
    """Half of what the engines can do, then 10 times as much as they can, then half again."""
    tally, gateway = Tally(), await _gateway(bench)
    calm, storm = (Offer(gateway.key, load * CAPACITY_PER_S, TOKENS) for load in (CALM_LOAD, LOADS[-1]))
    (before,) = await offered(gateway, [calm], bench.size, bench.rng)
    (during,) = await offered(gateway, [storm], bench.size / 2, bench.rng)
    (after,) = await offered(gateway, [calm], bench.size + SETTLED_AFTER_S, bench.rng)
    for ended, where in ((before, "before"), (during, "during"), (after, "after")):
        note(ended, where, tally)
    settled = [one for one in after if one.began_s >= SETTLED_AFTER_S]
    success = sum(one.status == 200 for one in settled) / max(len(settled), 1)
    slower = p99_s([one.took_s for one in settled]) / p99_s([one.took_s for one in before])
    tally.figure("answered, from 5 s after", success, at_least=0.999)
    tally.figure("time of an answer from 5 s after, p99, of before", slower, at_most=1.2)
    bench.progress(tally.tried(bench.size))
    return tally.outcome()


async def fairness(bench: Bench) -> Outcome:
    """A offers 20 times its share, B a quarter of its own: so its bursts hardly ever go beyond it."""
    tally, gateway = Tally(), await _gateway(bench)
    greedy, modest = (gateway.add_key(name).secret for name in ("greedy", "modest"))
    await gateway.start()  # it reads the keys
    share = CAPACITY_PER_S / 2
    own = Offer(modest, share * MODEST_PART, TOKENS)
    (alone,) = await offered(gateway, [own], bench.size, bench.rng)
    beside, others = await offered(gateway, [own, Offer(greedy, 20 * share, TOKENS)], bench.size, bench.rng)
    for ended, where in ((alone, "B alone"), (beside, "B beside A"), (others, "A")):
        note(ended, where, tally)
    success = sum(one.status == 200 for one in beside) / max(len(beside), 1)
    slower = p99_s(_first(beside)) / p99_s(_first(alone))
    tally.figure("B's requests that are answered", success, at_least=0.5 if bench.short else 0.995)
    tally.figure("B's first token, p99, alone", p99_s(_first(alone)) * 1e3, "ms")
    tally.figure("B's first token, p99, of alone", slower, at_most=100.0 if bench.short else 1.5)
    bench.progress(tally.tried(bench.size))
    return tally.outcome()


def _first(ended: Sequence[Ended]) -> list[float]:
    return [one.first_s for one in ended if one.status == 200]


GOODPUT = Row(
    key="4",
    name="1, 3 and 10 times what the engines can do",
    claim="At 10 times the load at least 90 % of the best rate of answers in time is held; refusals are 429 or 503 "
    "with Retry-After, within 50 ms (p99); no accepted request ends more than 1 s after its deadline.",
    unit="seconds of each load",
    full=120,
    short=1,
    run=goodput,
    sources=("gateway", "records", "testing"),
    takes_s=370,
)
AFTERMATH = Row(
    key="5",
    name="after an overload",
    claim="From 5 s after a load of 10 times what the engines can do, half of it is served as before: 99.9 % are "
    "answered, and the time of an answer (p99) is at most 1.2 times what it was.",
    unit="seconds of load",
    full=60,
    short=0,
    run=aftermath,
    sources=("gateway", "records", "testing"),
    takes_s=170,
)
FAIRNESS = Row(
    key="6",
    name="one tenant offers 20 times its share",
    claim="Of another tenant's requests within its share at least 99.5 % are answered, with the first token (p99) "
    "within 1.5 times what it is alone.",
    unit="seconds of load",
    full=60,
    short=1,
    run=fairness,
    sources=("gateway", "records", "testing"),
    takes_s=130,
)
ROWS = (GOODPUT, AFTERMATH, FAIRNESS)
