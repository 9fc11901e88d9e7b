"""A million requests of every kind, with gateways and engines killed in between: is each counted once?"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from modelyard.observe import instruments
from modelyard.observe.instruments import Instrument
from modelyard.observe.journal import BEGINNING, read_journal
from modelyard.observe.metrics import PICO, Metrics
from modelyard.observe.usage import Usage
from modelyard.records.journal import RequestRecord
from modelyard.records.topology import Deployment, Prices
from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.mixed_load import Heard, Told, ask_all, kinds
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.testing import FakeEngine

KEYS, CLIENTS, REPLICAS = 3, 32, 2
KILLS = 20
PRICES = Prices(currency="EUR", input_pico=150_000, cached_input_pico=37_500, output_pico=600_000)


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    killer = Killer(bench, tally)
    for number in range(REPLICAS):
        await killer.start_engine(number)
    gateway = await bench.gateway(killer.topology())
    secrets = [gateway.add_key(f"key {number}") for number in range(KEYS)]
    await gateway.start()  # it reads the keys

    def on_asked(number: int) -> None:
        killer.strike(gateway, number)
        if number % 1000 == 0:
            bench.progress(number)

    choices = kinds([one.secret for one in secrets])
    heard = await ask_all(gateway, choices, bench.size, clients=CLIENTS, rng=bench.rng, tally=tally, on_asked=on_asked)
    await killer.done()
    tally.tried(bench.size)
    gateway.terminate()
    await asyncio.get_running_loop().run_in_executor(None, gateway.wait)
    _compare(gateway, heard, [one.record.id for one in secrets], killer.gateway_kills, tally)
    return tally.outcome()


class Killer:
    """Kills, and starts again: the gateway on its listening socket, an engine on its address as a new launch."""

    def __init__(self, bench: Bench, tally: Tally) -> None:
        self.gateway_kills = 0
        self._bench, self._tally = bench, tally
        self._launches = [0] * REPLICAS
        self._engines: dict[int, FakeEngine] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def topology(self) -> Deployment:
        numbered = enumerate(self._launches)
        replicas = (replica(self._address(one), f"r{one}", launch=f"l{launch}") for one, launch in numbered)
        return deployment(*replicas, prices=PRICES, retry_after_s=1)

    async def start_engine(self, number: int) -> None:
        self._engines[number] = await self._bench.engine(address=self._address(number))

    def strike(self, gateway: GatewayProcess, asked: int) -> None:
        """Called with the number of each request: now and then something dies."""
        if not asked or self._tasks:
            return
        step = self._bench.size // (KILLS + 1) + 1
        if asked % step == 0:
            self._begin(self._kill_gateway(gateway))
        elif (asked + step // 2) % step == 0:
            self._begin(self._kill_engine(gateway, self._bench.rng.randrange(REPLICAS)))

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)

    def _begin(self, killing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(killing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _kill_gateway(self, gateway: GatewayProcess) -> None:
        self.gateway_kills += 1
        self._tally.saw("kills of the gateway")
        gateway.kill()
        await gateway.start()

    async def _kill_engine(self, gateway: GatewayProcess, number: int) -> None:
        self._tally.saw("kills of an engine")
        self._engines[number].kill()
        await self._engines[number].ended()
        await self.start_engine(number)
        self._launches[number] += 1
        gateway.publish(self.topology())

    def _address(self, number: int) -> str:
        return f"unix:{self._bench.state.sockets / f'e{number}.sock'}"


@dataclass
class Sums:
    """Of the journal's records, added up here."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    pico: int = 0

    def add(self, record: RequestRecord) -> None:
        self.requests += 1
        self.prompt += record.prompt_tokens
        self.completion += record.completion_tokens
        self.pico += record.cost_pico

    @property
    def as_tuple(self) -> tuple[int, int, int, int]:
        return self.requests, self.prompt, self.completion, self.pico


def _compare(gateway: GatewayProcess, heard: Heard, key_ids: list[str], kills: int, tally: Tally) -> None:
    """Every request that was answered stands once in the journal, with what its client was told; the others are no
    more than those that no answer reached. Usage, cost and metrics are the journal's sums."""
    usage, metrics, seen = Usage(), Metrics(), set[str]()
    sums = {key_id: Sums() for key_id in key_ids}
    surplus, checkpoint, more = 0, BEGINNING, True
    while more:
        step = read_journal(gateway.state.journal, checkpoint)
        checkpoint, more = step.checkpoint, step.more
        tally.expect(step.unreadable == 0, f"{step.unreadable} lines of the journal cannot be read")
        usage.take(step)
        metrics.count(step.records)
        for record in step.records:
            sums.setdefault(record.key_id, Sums()).add(record)
            tally.expect(record.request_id not in seen, f"two records of {record.request_id}")
            seen.add(record.request_id)
            told = heard.told.get(record.request_id)
            if told is None:
                surplus += 1
            else:
                _check_record(record, told, key_ids, tally)
    missing = heard.told.keys() - seen
    for request_id in missing:
        tally.wrong(f"{request_id} was answered and is not in the journal: {heard.told[request_id]}")
    tally.saw("answered to the end", len(heard.told))
    tally.saw("records without an answer that arrived", surplus)
    tally.saw("requests whose connection ended first", heard.lost)
    tally.saw("requests whose client left", heard.left)
    lost_most = kills * CLIENTS
    tally.expect(heard.lost <= lost_most, f"{heard.lost} connections were lost, {lost_most} were open at the kills")
    unanswered = heard.lost + heard.left
    tally.expect(surplus <= unanswered, f"{surplus} records without an answer, {unanswered} requests without one")
    _check_projections(usage, metrics, sums, tally)


def _check_record(record: RequestRecord, told: Told, key_ids: list[str], tally: Tally) -> None:
    one = record.request_id
    tally.expect(record.key_id == key_ids[told.key], f"{one} is accounted to another key")
    tally.expect(record.status == told.status, f"{one}: {record.status} in the journal, {told.status} at the client")
    is_right = told.tokens < 0 or record.completion_tokens == told.tokens
    tally.expect(is_right, f"{one}: {record.completion_tokens} tokens in the journal, {told.tokens} at the client")
    cost = PRICES.cost_pico(record.prompt_tokens, record.cached_tokens, record.completion_tokens)
    tally.expect(record.cost_pico == cost, f"{one} costs {record.cost_pico}, its tokens {cost}")


def _check_projections(usage: Usage, metrics: Metrics, sums: dict[str, Sums], tally: Tally) -> None:
    total = Sums()
    for row in usage.rows("key", {}):
        mine = sums.pop(row.id, Sums()).as_tuple
        told = (row.requests, row.prompt_tokens, row.completion_tokens, row.cost_pico)
        tally.expect(told == mine, f"usage of {row.id} is {told}, its records sum to {mine}")
        total.requests += row.requests
        total.prompt += row.prompt_tokens
        total.completion += row.completion_tokens
        total.pico += row.cost_pico
    left_out = [key_id for key_id, one in sums.items() if one.requests]
    tally.expect(not left_out, f"usage does not know {left_out}")
    shown = tuple(
        _sum(metrics, one)
        for one in (instruments.REQUESTS, instruments.PROMPT_TOKENS, instruments.COMPLETION_TOKENS, instruments.COST)
    )
    # The exposition holds floats; of whole numbers below 2^53 they forget nothing.
    wanted = (*map(float, total.as_tuple[:3]), total.pico / PICO)
    tally.expect(shown == wanted, f"the metrics say {shown}, usage {wanted}")
    tally.saw("prompt tokens", total.prompt)
    tally.saw("completion tokens", total.completion)
    tally.figure("cost", total.pico / PICO, PRICES.currency)


def _sum(metrics: Metrics, instrument: Instrument) -> float:
    families = [family for family in metrics.registry.collect() if family.name == instrument.family]
    samples = (sample for family in families for sample in family.samples if sample.name.endswith("_total"))
    return sum(sample.value for sample in samples)


ROW = Row(
    key="million",
    name="a million requests, with kills in between",
    claim="Of a million requests of every kind, with 20 kills of the gateway and as many of engines in between, each "
    "that was answered to its end stands once in the journal, with its key, status, tokens and cost; records beyond "
    "these are no more than the requests that no answer reached; usage, cost and metrics are the sums of the journal.",
    unit="requests",
    full=1_000_000,
    short=2_000,
    run=run,
    sources=("gateway", "records", "observe", "testing"),
    takes_s=240,
    limit_s=7200,
)
