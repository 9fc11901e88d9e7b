"""A long mixed traffic through a gateway that is killed again and again, counted on every side."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from modelyard.observe import instruments
from modelyard.observe.journal import BEGINNING, Checkpoint, read_journal
from modelyard.observe.metrics import Metrics
from modelyard.observe.unsent import Unsent
from modelyard.observe.usage import Usage
from modelyard.records.keys import Limits
from modelyard.records.secrets import NewKey, public_id
from modelyard.records.topology import Prices
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Connection, Lost, chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.instant_engine import instant_engine
from modelyard.selftest.ledger import Ledger, Told
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

CLIENTS = 32
KILLS, KILLS_SHORT = 20, 3
DEADLINE_S = 30.0
READ_EVERY_S = 0.5
PRICES = Prices(currency="EUR", input_pico=150_000, cached_input_pico=75_000, output_pico=600_001)
KINDS = ("plain", "stream", "refused", "bounded", "leaves")
WEIGHTS = (55, 25, 8, 7, 5)
PATH = "/v1/chat/completions"


@dataclass
class Books:
    """What is known on our side: the journal as it is followed, in the steps that control would make."""

    gateway: GatewayProcess
    ledger: Ledger
    usage: Usage = field(default_factory=Usage)
    metrics: Metrics = field(default_factory=Metrics)
    unsent: Unsent = field(default_factory=Unsent)
    checkpoints: list[Checkpoint] = field(default_factory=lambda: [BEGINNING])

    def follow(self) -> None:
        more = True
        while more:
            step = read_journal(self.gateway.state.journal, self.usage.checkpoint)
            for record in step.records:
                self.ledger.recorded(record)
            self.usage.take(step)
            self.metrics.count(step.records)
            self.unsent.take(step)
            self.checkpoints = [*self.checkpoints[-9:], step.checkpoint]
            more = step.more

    def read_again(self, checkpoint: Checkpoint) -> None:
        """As a projection does that comes back from an older checkpoint: nothing may count twice."""
        step = read_journal(self.gateway.state.journal, checkpoint)
        self.usage.count(step.records)
        self.metrics.count(step.records)


class Traffic:
    """Clients that ask until `size` requests are made."""

    def __init__(self, bench: Bench, gateway: GatewayProcess, bounded: NewKey, ledger: Ledger, tally: Tally) -> None:
        self._bench, self._gateway, self._bounded = bench, gateway, bounded
        self._ledger, self._tally = ledger, tally
        self.made = self.in_flight = 0

    async def ask_on(self) -> None:
        """One client: a request at a time, on a connection that is opened again when it was lost."""
        connection: Connection | None = None
        while self.made < self._bench.size:
            self.made += 1
            self._bench.progress(self._tally.tried())
            if connection is None or not connection.open:
                connection = await self._gateway.connect()
            self.in_flight += 1
            try:
                await self._ask(connection)
            except TimeoutError:
                self._tally.wrong(f"no answer within {DEADLINE_S:g} s")
                connection.close()
            except (Lost, OSError):
                self._tally.saw("reset")
                connection.close()
            finally:
                self.in_flight -= 1
        if connection is not None:
            connection.close()

    async def _ask(self, connection: Connection) -> None:
        dice = self._bench.rng
        kind = dice.choices(KINDS, WEIGHTS)[0]
        prompt, tokens = dice.randint(1, 5000), dice.randint(1, 500)
        more: dict[str, Any] = {"seed": prompt, "stream": kind in ("stream", "leaves")}
        body = chat(MODEL, tokens=0 if kind == "refused" else tokens, **more)
        key = self._bounded.secret if kind == "bounded" else self._gateway.key
        request = post(PATH, key, body)
        if kind == "leaves":
            connection.send(request)
            status = await connection.head(DEADLINE_S)
            request_id = connection.headers.get("x-request-id", "")
            connection.close()
            self._ledger.told(request_id, Told(public_id(key), status, is_cut=True))
            return
        response = await connection.ask(request, DEADLINE_S)
        self._tally.saw(f"answered with {response.status}")
        told = Told(public_id(key), response.status)
        if response.status == 200:
            told = Told(public_id(key), 200, prompt, tokens, PRICES.cost_pico(prompt, 0, tokens))
        expected = {"refused": (400,), "bounded": (200, 429)}.get(kind, (200,))
        self._tally.expect(response.status in expected, f"{kind}: {response.status}: {response.body[:200]!r}")
        self._ledger.told(response.headers.get("x-request-id", ""), told)


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    socket = bench.state.sockets / "instant.sock"
    engine = await instant_engine(socket)
    gateway = await bench.gateway(deployment(replica(f"unix:{socket}", max_in_flight=256), prices=PRICES))
    bounded = gateway.add_key("bounded", limits=Limits(requests_per_minute=600, tokens_per_minute=1_000_000))
    await asyncio.sleep(0.5)  # the key log is read ten times a second
    books = Books(gateway, Ledger(tally))
    traffic = Traffic(bench, gateway, bounded, books.ledger, tally)
    following = asyncio.create_task(_follow_on(books))
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(traffic.ask_on())
        in_flight = await _kill_now_and_then(bench, gateway, traffic, books)
    following.cancel()
    gateway.terminate()
    ended = await until(lambda: gateway.exit_code is not None, DEADLINE_S)
    tally.expect(ended is not None, f"the gateway did not end within {DEADLINE_S:g} s of SIGTERM")
    engine.close()
    books.follow()
    books.ledger.close(in_flight, {record.request_id for record in books.unsent.records()})
    tally.figure("in flight at the kills", in_flight)
    tally.figure("records marked", len(books.unsent.records()))
    _compare(books, tally)
    return tally.outcome()


async def _follow_on(books: Books) -> None:
    while True:
        books.follow()
        await asyncio.sleep(READ_EVERY_S)


async def _kill_now_and_then(bench: Bench, gateway: GatewayProcess, traffic: Traffic, books: Books) -> int:
    """How many requests were in flight at the kills, all together."""
    in_flight, kills = 0, KILLS_SHORT if bench.short else KILLS
    for kill in range(1, kills + 1):
        await until(lambda due=bench.size * kill // (kills + 1): traffic.made >= due, ROW.limit_s, every_s=0.005)
        await asyncio.sleep(bench.rng.uniform(0.0, 0.05))
        in_flight += traffic.in_flight
        gateway.kill()
        await gateway.start()
        books.read_again(bench.rng.choice(books.checkpoints))
    return in_flight


def _compare(books: Books, tally: Tally) -> None:
    """The projections with the journal, read here by another way: line by line, as anybody would."""
    of_key, all_of_it = dict[str, Counter[str]](), Counter[str]()
    for path in books.gateway.state.journal.glob("*.ndjson"):
        with path.open("rb") as file:
            for line in file:
                record = json.loads(line)
                if record["schema"] == "request/v1":
                    found = Counter({name: record.get(name, 0) for name in ("prompt_tokens", "completion_tokens")})
                    found += Counter(requests=1, cost_pico=record.get("cost_pico", 0))
                    of_key.setdefault(record.get("key_id", ""), Counter()).update(found)
                    all_of_it.update(found)
    names = ("requests", "prompt_tokens", "completion_tokens", "cost_pico")
    for by in ("key", "deployment", "day"):
        rows = books.usage.rows(by, {})
        summed = {name: sum(getattr(row, name) for row in rows) for name in names}
        expected = {name: all_of_it[name] for name in names}
        tally.expect(summed == expected, f"usage by {by} is {summed}, the journal holds {expected}")
    for row in books.usage.rows("key", {}):
        mine = {name: getattr(row, name) for name in names}
        tally.expect(mine == {name: of_key[row.id][name] for name in names}, f"usage of {row.id}: {mine}")
    for name, instrument in (
        ("requests", instruments.REQUESTS),
        ("prompt_tokens", instruments.PROMPT_TOKENS),
        ("completion_tokens", instruments.COMPLETION_TOKENS),
    ):
        shown = _counted(books.metrics, instrument.family)
        tally.expect(shown == all_of_it[name], f"the metric of {name} is {shown}, the journal holds {all_of_it[name]}")
    shown_cost = _counted(books.metrics, instruments.COST.family)
    relative = abs(shown_cost * 10**12 - all_of_it["cost_pico"]) / max(all_of_it["cost_pico"], 1)
    tally.figure("cost in the metric, relative error of its floating point", relative, at_most=1e-9)


def _counted(metrics: Metrics, family: str) -> float:
    """The sum over all labels."""
    name = family.removesuffix("_total")
    families = text_string_to_metric_families(metrics.render().decode())
    samples = [sample for one in families if one.name == name for sample in one.samples]
    return sum(sample.value for sample in samples if sample.name == f"{name}_total")


ROW = Row(
    key="ledger",
    name="mixed traffic with kills in between",
    claim="Every acknowledged request stands exactly once in journal, usage, cost and metrics, with the tokens that "
    "its engine stated and their exact cost; records beyond those are at most the requests in flight at the kills, and "
    "each of them is marked.",
    unit="requests",
    full=1_000_000,
    short=4_000,
    run=run,
    sources=("gateway",),
    takes_s=330,
    limit_s=5400,
)
