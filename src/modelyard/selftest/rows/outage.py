"""Rows 23 and 27: an outage of every replica, with as few sendings as it needs, and the way out of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack

from modelyard.records.topology import Deployment, Failover
from modelyard.selftest.asking import CHAT
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Response, chat, post
from modelyard.selftest.endings import RETRYABLE, judged
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row
from modelyard.testing import Fault, FaultProxy

DEADLINE_S = 20.0
TOKENS = 2
TEXT = " ".join(f"w{index}" for index in range(TOKENS))
# One way to fail for each replica. A connection that was used and then ends without a byte is a keep-alive race, and is
# settled by a fresh one: one replica that failed in both ways by turns would be sent more than the budget of retries.
FAULTS = (Fault(kind="early-eof"), Fault(kind="html-502"))
DEGRADED = "x-modelyard-degraded"

REQUESTS_PER_S = 100
RETRY_SHARE, RETRIES_PER_S = 0.1, 3.0
RECOVERED_WITHIN_S = 5.0
IN_A_ROW = 50
_NUMBERS = itertools.count()

PANIC_REPLICAS = 3
# Longer than a round, so that no replica half opens in it.
EJECTED_S = 60.0
FAILING_REQUESTS = 30


async def storm(bench: Bench) -> Outcome:
    """100 requests a second while every sending fails."""
    tally = Tally()
    async with AsyncExitStack() as stack:
        proxies = await _proxies(bench, stack, len(FAULTS))
        started = time.monotonic()
        gateway = await bench.gateway(_served(proxies, Failover()))
        for fault, proxy in zip(FAULTS, proxies, strict=True):
            await proxy.plan(fault)
        took_s: list[float] = []
        began, tasks = time.monotonic(), list[asyncio.Task[Response | None]]()
        for number in range(bench.size):
            await asyncio.sleep(began + number / REQUESTS_PER_S - time.monotonic())
            tasks.append(asyncio.create_task(_ask(gateway)))
            bench.progress(tally.tried())
        for response in await asyncio.gather(*tasks):
            if response is None or response.status not in RETRYABLE:
                tally.wrong(f"answered {response.status if response else 'not at all'} while every sending fails")
            else:
                tally.saw(f"answered {response.status}")
                took_s.append(response.took_s)
        lasted_s = time.monotonic() - started
        sent = sum([len(await proxy.seen()) for proxy in proxies])
        for proxy in proxies:
            await proxy.plan()
        recovered_s = await until(lambda: _answers_in_a_row(gateway), RECOVERED_WITHIN_S * 4, every_s=0.0)
    tally.saw("sendings", sent)
    most = bench.size * (1 + RETRY_SHARE) + RETRIES_PER_S * lasted_s
    tally.figure("sendings", sent, at_most=most)
    tally.figure("refused after, p99", quantile(took_s, 0.99) * 1e3, "ms")
    slowest_s = RECOVERED_WITHIN_S * (4 if bench.short else 1)
    tally.figure(f"{IN_A_ROW} answers in a row after", recovered_s or float("nan"), "s", at_most=slowest_s)
    return tally.outcome()


async def panic(bench: Bench) -> Outcome:
    """Every replica is taken out; one answers again."""
    tally, found_s = Tally(), list[float]()
    async with AsyncExitStack() as stack:
        proxies = await _proxies(bench, stack, PANIC_REPLICAS)
        gateway = await bench.gateway()
        for number in range(bench.size):
            for proxy in proxies:
                await proxy.plan(Fault(kind="early-eof"))
            gateway.publish(_served(proxies, Failover(eject_s=EJECTED_S), launch=f"l{number}"))
            await until(lambda number=number: _is_known(gateway, number), DEADLINE_S)
            await _fail_all(gateway, proxies, tally)
            sound = bench.rng.choice(proxies)
            await sound.plan()
            found_s.append(await _least_bad(gateway, tally))
            bench.progress(tally.tried())
        _check_panic(gateway, tally)
    tally.figure("until the one that answers is found, slowest", max(found_s), "s", at_most=RECOVERED_WITHIN_S * 4)
    return tally.outcome()


async def _fail_all(gateway: GatewayProcess, proxies: list[FaultProxy], tally: Tally) -> None:
    """Until none is sound, and then some more: every request is sent to one, however bad."""
    before = sum([len(await proxy.seen()) for proxy in proxies])
    for _ in range(FAILING_REQUESTS):
        response = await _ask(gateway)
        status = response.status if response is not None else 0
        tally.expect(status in RETRYABLE, f"answered {status} while every sending fails")
    sent = sum([len(await proxy.seen()) for proxy in proxies]) - before
    tally.expect(sent >= FAILING_REQUESTS, f"only {sent} of {FAILING_REQUESTS} requests were sent to a replica")


async def _least_bad(gateway: GatewayProcess, tally: Tally) -> float:
    """Seconds until a request is answered; its answer says that no replica is sound."""
    began = time.monotonic()
    while time.monotonic() - began < DEADLINE_S:
        response = await _ask(gateway)
        if response is not None and judged(response, TEXT, stream=False).ending == "whole":
            tally.saw("answered in panic" if DEGRADED in response.headers else "answered")
            tally.expect(DEGRADED in response.headers, "an answer in panic does not say so")
            return time.monotonic() - began
    tally.wrong(f"one replica answers, and no request reached it within {DEADLINE_S:g} s")
    return DEADLINE_S


def _check_panic(gateway: GatewayProcess, tally: Tally) -> None:
    for record in gateway.records():
        if record.endpoint == CHAT and record.status != 404:
            tally.expect(record.attempts > 0, f"{record.request_id} was sent to nobody: {record.error}")


async def _proxies(bench: Bench, stack: AsyncExitStack, count: int) -> list[FaultProxy]:
    engine = await bench.engine()
    return [await stack.enter_async_context(FaultProxy(engine.address)) for _ in range(count)]


def _served(proxies: list[FaultProxy], failover: Failover, launch: str = "l0") -> Deployment:
    replicas = (replica(proxy.address, f"r{number}", launch=launch) for number, proxy in enumerate(proxies))
    return deployment(*replicas, failover=failover, retry_after_s=1)


async def _is_known(gateway: GatewayProcess, number: int) -> bool:
    """Whether the gateway follows the topology of this round: it sends to its launch."""
    await _ask(gateway)
    return gateway.records()[-1].launch == f"l{number}"


async def _answers_in_a_row(gateway: GatewayProcess) -> bool:
    for _ in range(IN_A_ROW):
        response = await _ask(gateway)
        if response is None or judged(response, TEXT, stream=False).ending != "whole":
            return False
    return True


async def _ask(gateway: GatewayProcess) -> Response | None:
    """Each prompt is another one: what is there whenever an engine ends would be refused as poison."""
    body = chat(MODEL, tokens=TOKENS, content=f"request {next(_NUMBERS)}")
    return await gateway.answer(post(CHAT, gateway.key, body), DEADLINE_S)


STORM = Row(
    key="23",
    name="every sending fails",
    claim="While every sending fails, at 100 requests a second, there are at most 1.10 times as many sendings as "
    "requests, and 3 a second; every request is told so by an error object; 5 s after all is well again, so are the "
    "answers.",
    unit="requests",
    full=6_000,
    short=200,
    run=storm,
    sources=("gateway", "testing/fake_engine.py", "testing/fault_program.py"),
    takes_s=70,
)
PANIC = Row(
    key="27",
    name="every replica is taken out",
    claim="Where no replica is sound requests are still sent, to the least bad; none is refused for want of a replica "
    "while one answers, and the answer's header says that the service is degraded.",
    unit="rounds",
    full=20,
    short=2,
    run=panic,
    sources=("gateway", "testing/fake_engine.py", "testing/fault_program.py"),
    takes_s=5,
)
ROWS = (STORM, PANIC)
