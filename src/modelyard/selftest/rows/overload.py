"""Rows 4 to 6: more requests than there is room for, the time after it, and one tenant who sends most of them.

The engines are FakeEngines: their rate is known, so that a load of 10 times as much is one, and no engine takes the
cores of the gateway and of the clients. overload_on_a_real_engine.py does the same with engines that compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.open_load import Ended, Offer, Question, note, offered, p99_s
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

REPLICAS, SEATS, TOKENS = 2, 8, 16
PREFILL_S, TOKEN_INTERVAL_S = 0.05, 0.02
SERVICE_S = PREFILL_S + TOKENS * TOKEN_INTERVAL_S
QUEUE_TIMEOUT_S = 2.0
LOADS = (1, 3, 10)
REFUSED_WITHIN_MS = 50.0
LEAST_GOODPUT = 0.9
SETTLED_AFTER_S = 5.0
CALM_LOAD = 0.5
MODEST_PART = 0.25
GREEDY_LOAD = 20


@dataclass(frozen=True)
class Site:
    """What is loaded. `capacity_per_s` is how many requests a second the engines answer at most; `deadline_s` when a
    request that is let in is answered at the latest: the time that it may wait, and that of an answer where every seat
    is taken."""

    gateway: GatewayProcess
    question: Question
    capacity_per_s: float
    deadline_s: float


async def fakes(bench: Bench, **policy: Any) -> Site:
    engines = [
        await bench.engine(max_sequences=SEATS, prefill_s=PREFILL_S, token_interval_s=TOKEN_INTERVAL_S)
        for _ in range(REPLICAS)
    ]
    replicas = (replica(engine, f"r{number}", max_in_flight=SEATS) for number, engine in enumerate(engines))
    gateway = await bench.gateway(deployment(*replicas, queue_timeout_s=QUEUE_TIMEOUT_S, **policy))
    question = Question(TOKENS, " ".join(f"w{index}" for index in range(TOKENS)))
    return Site(gateway, question, REPLICAS * SEATS / SERVICE_S, QUEUE_TIMEOUT_S + SERVICE_S)


async def goodput(bench: Bench) -> Outcome:
    return await goodput_of(bench, await fakes(bench))


async def aftermath(bench: Bench) -> Outcome:
    return await aftermath_of(bench, await fakes(bench))


async def fairness(bench: Bench) -> Outcome:
    return await fairness_of(bench, await fakes(bench))


async def goodput_of(bench: Bench, site: Site) -> Outcome:
    """1, 3 and 10 times what the engines can do, `size` seconds each."""
    tally, refused_s = Tally(), list[float]()
    good: dict[int, float] = {}
    for load in LOADS:
        offer = Offer(site.gateway.key, load * site.capacity_per_s, site.question)
        (ended,) = await offered(site.gateway, [offer], bench.size, bench.rng)
        note(ended, f"{load} times", tally)
        late = sum(one.took_s > site.deadline_s + 1 for one in ended)
        tally.expect(late == 0, f"{load} times: {late} requests ended later than 1 s after their deadline")
        good[load] = sum(one.status == 200 and one.took_s <= site.deadline_s + 1 for one in ended) / bench.size
        refused_s += [one.took_s for one in ended if one.status in (429, 503)]
        tally.figure(f"answers in time, {load} times", good[load], "/s")
    bench.progress(tally.tried(bench.size))
    least = 0.0 if bench.short else LEAST_GOODPUT
    tally.figure("goodput at 10 times, of the best", good[LOADS[-1]] / max(good.values()), at_least=least)
    slowest_ms = REFUSED_WITHIN_MS * (100 if bench.short else 1)
    tally.figure("refused after, p99", p99_s(refused_s) * 1e3, "ms", at_most=slowest_ms)
    return tally.outcome()


async def aftermath_of(bench: Bench, site: Site) -> Outcome:
    """Half of what the engines can do, then 10 times as much as they can, then half again."""
    tally, gateway = Tally(), site.gateway
    calm, storm = (Offer(gateway.key, load * site.capacity_per_s, site.question) for load in (CALM_LOAD, LOADS[-1]))
    (before,) = await offered(gateway, [calm], bench.size, bench.rng)
    (during,) = await offered(gateway, [storm], bench.size / 2, bench.rng)
    (after,) = await offered(gateway, [calm], bench.size + SETTLED_AFTER_S, bench.rng)
    for ended, where in ((before, "before"), (during, "during"), (after, "after")):
        note(ended, where, tally)
    settled = [one for one in after if one.began_s >= SETTLED_AFTER_S]
    success = sum(one.status == 200 for one in settled) / max(len(settled), 1)
    slower = p99_s([one.took_s for one in settled]) / p99_s([one.took_s for one in before])
    tally.figure("answered, from 5 s after", success, at_least=0.999)
    tally.figure("time of an answer before, p99", p99_s([one.took_s for one in before]) * 1e3, "ms")
    tally.figure("time of an answer from 5 s after, p99, of before", slower, at_most=1.2)
    bench.progress(tally.tried(bench.size))
    return tally.outcome()


async def fairness_of(bench: Bench, site: Site) -> Outcome:
    tally = Tally()
    alone, beside = await beside_a_flood(bench, site, tally)
    slower = p99_s(first_s(beside)) / p99_s(first_s(alone))
    tally.figure("B's first token, p99, of alone", slower, at_most=100.0 if bench.short else 1.5)
    bench.progress(tally.tried(bench.size))
    return tally.outcome()


async def beside_a_flood(bench: Bench, site: Site, tally: Tally) -> tuple[list[Ended], list[Ended]]:
    """What became of B's requests alone, and while A offers 20 times its share: B a quarter of its own, so that its
    bursts hardly ever go beyond it."""
    gateway, share = site.gateway, site.capacity_per_s / 2
    greedy, modest = (gateway.add_key(name).secret for name in ("greedy", "modest"))
    await gateway.start()  # it reads the keys
    own, flood = Offer(modest, MODEST_PART * share, site.question), Offer(greedy, GREEDY_LOAD * share, site.question)
    (alone,) = await offered(gateway, [own], bench.size, bench.rng)
    beside, others = await offered(gateway, [own, flood], bench.size, bench.rng)
    for ended, where in ((alone, "B alone"), (beside, "B beside A"), (others, "A")):
        note(ended, where, tally)
    success = sum(one.status == 200 for one in beside) / max(len(beside), 1)
    answered = sum(one.status == 200 for one in (*beside, *others)) / bench.size
    tally.figure("B's requests that are answered", success, at_least=0.5 if bench.short else 0.995)
    tally.figure("answers to both, of what the engines can do", answered / site.capacity_per_s)
    tally.figure("B's first token, p99, alone", p99_s(first_s(alone)) * 1e3, "ms")
    return alone, beside


def first_s(ended: Sequence[Ended]) -> list[float]:
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
