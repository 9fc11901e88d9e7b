"""Requests that end the engine, in every way that one can be asked, amid others that are innocent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from modelyard.records.journal import RequestRecord
from modelyard.records.topology import Failover, Replica
from modelyard.selftest.asking import CHAT, Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Lost, Response, chat, connect, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.testing import FakeEngine

REPLICAS = 3
INNOCENTS = 6
TOKENS = 20
TEXT = " ".join(f"w{index}" for index in range(TOKENS))
POISON = "arsenic"
MIDDLE = 3
DEADLINE_S = 30.0
# A client that is told 503 asks again; one that is told 422 has no reason to, and these do so nevertheless.
ASKED_AT_MOST = 12
ASKED_AFTERWARDS = 3
PAUSE_S = 0.2
COMPLETIONS, MESSAGES, RESPONSES = "/v1/completions", "/v1/messages", "/v1/responses"


@dataclass(frozen=True)
class Kind:
    """It is asked at `path` and ends the engine after so many tokens of its answer. `resumes`: streams that break are
    gone on with."""

    path: str
    stream: bool
    after: int
    resumes: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        how = "stream" if self.stream else "plain"
        when = f"after {self.after} tokens" if self.after else "before a token"
        return ", ".join([self.path, how, when, *["resumed"] * self.resumes, *(name for name, _ in self.more)])

    def body(self, text: str) -> dict[str, Any]:
        more: dict[str, Any] = {"stream": self.stream, **dict(self.more)}
        match self.path:
            case "/v1/completions":
                return {"model": MODEL, "prompt": text, "max_tokens": TOKENS, **more}
            case "/v1/responses":
                return {"model": MODEL, "input": text, "max_output_tokens": TOKENS, **more}
            case _:
                return chat(MODEL, tokens=TOKENS, content=text, **more)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TEMPERATE = (("temperature", 0),)
KINDS = (
    *(
        Kind(path, stream, after)
        for path in (CHAT, COMPLETIONS, MESSAGES, RESPONSES)
        for stream in (False, True)
        for after in (0, MIDDLE)
    ),
    Kind(CHAT, True, MIDDLE, resumes=True, more=TEMPERATE),
    Kind(COMPLETIONS, True, MIDDLE, resumes=True, more=TEMPERATE),
    Kind(CHAT, False, 0, more=(("tools", [TOOL]),)),
    Kind(CHAT, False, 0, more=(("stop", ["never"]), ("seed", 7))),
)


class Fleet:
    """Replicas that are started anew, as other launches, whenever they end. `deaths` counts that."""

    def __init__(self, bench: Bench, gateway: GatewayProcess) -> None:
        self._bench, self._gateway = bench, gateway
        self._launches = [0] * REPLICAS
        self._engines: dict[int, FakeEngine] = {}
        self._kind = KINDS[0]
        self.deaths = 0

    def is_whole(self) -> bool:
        return len(self._engines) == REPLICAS

    async def becomes(self, kind: Kind) -> None:
        self._kind = kind
        for engine in self._engines.values():
            await engine.set(crash_on_text_after=kind.after)
        self._publish()

    async def keep(self, number: int) -> None:
        """One replica, for ever."""
        while True:
            address = f"unix:{self._bench.state.sockets / f'{number}-{self._launches[number]}.sock'}"
            engine = await self._bench.engine(
                address=address,
                token_interval_s=0.01,
                crash_on_text=POISON,
                crash_on_text_after=self._kind.after,
            )
            self._engines[number] = engine
            self._publish()
            await engine.ended()
            self.deaths += 1
            del self._engines[number]
            self._launches[number] += 1
            self._publish()

    def _publish(self) -> None:
        broken: Literal["error", "resume"] = "resume" if self._kind.resumes else "error"
        failover = Failover(on_broken_stream=broken, retries_per_s=100.0, eject_after=10_000)
        self._gateway.publish(deployment(*self._replicas(), failover=failover, continues_chat=True))

    def _replicas(self) -> Iterator[Replica]:
        for number, engine in sorted(self._engines.items()):
            yield replica(engine, f"r{number}", launch=f"{self._launches[number]}")


class Trial:
    """One kind: what was asked and what came of it. `convicted` are requests that were told 422."""

    def __init__(self, bench: Bench, gateway: GatewayProcess, kind: Kind, number: int, tally: Tally) -> None:
        self._bench, self._gateway, self._kind, self._tally = bench, gateway, kind, tally
        self._text = f"{POISON} {number}"
        self._number = number
        self.convicted: set[str] = set()
        self.innocent: dict[str, Asked] = {}

    async def run(self) -> None:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for who in range(INNOCENTS):
                group.create_task(self._innocent(who, over))
            try:
                await asyncio.sleep(self._bench.rng.uniform(0.05, 0.2))
                await self._poison()
            finally:
                over.set()

    async def _poison(self) -> None:
        kind, told = self._kind.name, list[int]()
        while len(told) < ASKED_AT_MOST and 422 not in told:
            response = await self._ask()
            told.append(response.status if response is not None else 0)
            is_cut = self._kind.stream and response is not None and response.status == 200 and b"error" in response.body
            self._tally.expect(is_cut or told[-1] in (503, 422), f"{kind}: told {told}")
            if told[-1] != 422:
                await asyncio.sleep(PAUSE_S)
        self._tally.expect(422 in told, f"{kind}: asked {len(told)} times, never refused: {told}")
        self._tally.saw("asked until refused", len(told))
        for _ in range(ASKED_AFTERWARDS):
            response = await self._ask()
            is_refused = response is not None and response.status == 422
            self._tally.expect(is_refused, f"{kind}: {response.status if response else 'lost'} after a 422")

    async def _ask(self) -> Response | None:
        connection = await connect(f"http://127.0.0.1:{self._gateway.port}")
        try:
            request = post(self._kind.path, self._gateway.key, self._kind.body(self._text))
            response = await connection.ask(request, DEADLINE_S)
        except (Lost, TimeoutError):
            return None
        finally:
            connection.close()
        if response.status == 422:
            self.convicted.add(response.headers.get("x-request-id", ""))
        return response

    async def _innocent(self, who: int, over: asyncio.Event) -> None:
        """One question after the other, each another one. Where streams go on, plain ones: see the claim."""
        count = 0
        while not over.is_set():
            count += 1
            stream = count % 2 == 0 and not self._kind.resumes
            body = chat(MODEL, stream=stream, tokens=TOKENS, content=f"{self._number}, {who}, {count}")
            asked = await ask(self._gateway, body, within_s=DEADLINE_S, expected=TEXT)
            self._tally.saw(f"innocent: {asked.verdict}")
            is_well = asked.verdict == "whole" or (stream and asked.verdict == "cut")
            self._tally.expect(is_well, f"{self._kind.name}: an innocent one: {asked.verdict}: {asked.detail}")
            self.innocent[asked.request_id] = asked


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    gateway = await bench.gateway()
    fleet = Fleet(bench, gateway)
    keeping = [asyncio.create_task(fleet.keep(number)) for number in range(REPLICAS)]
    try:
        for number, kind in enumerate(_kinds(bench)):
            whole = await until(fleet.is_whole, DEADLINE_S)
            tally.expect(whole is not None, f"{kind.name}: the fleet is not whole after {DEADLINE_S:g} s")
            await fleet.becomes(kind)
            await until(lambda: _is_served(gateway), DEADLINE_S)
            deaths = fleet.deaths
            trial = Trial(bench, gateway, kind, number, tally)
            await trial.run()
            deaths = fleet.deaths - deaths
            tally.saw("engines ended", deaths)
            tally.expect(deaths == 2, f"{kind.name}: it ended {deaths} engines")
            _check_journal(gateway.records(), trial, kind, tally)
            bench.progress(tally.tried())
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
    return tally.outcome()


def _kinds(bench: Bench) -> list[Kind]:
    """Each as often as any other, one after the other."""
    kinds = list(KINDS)
    if bench.size < len(kinds):
        return bench.rng.sample(kinds, bench.size)
    return [kinds[number % len(kinds)] for number in range(bench.size)]


def _check_journal(records: list[RequestRecord], trial: Trial, kind: Kind, tally: Tally) -> None:
    for record in records:
        if record.error == "poison_request" and record.request_id in trial.innocent:
            tally.wrong(f"{kind.name}: an innocent one was convicted")
        if record.request_id in trial.innocent:
            lost = sum(tried.kind == "failed" for tried in record.tried)
            tally.saw("innocent ones retried", lost)
            tally.expect(lost <= 1, f"{kind.name}: an innocent one was lost {lost} times")
        if record.request_id in trial.convicted:
            tally.saw("refusals")
            tally.expect(record.error == "poison_request", f"{kind.name}: a 422 with {record.error!r} in the journal")


async def _is_served(gateway: GatewayProcess) -> bool:
    return (await ask(gateway, chat(MODEL, tokens=1), within_s=DEADLINE_S)).verdict == "whole"


ROW = Row(
    key="14",
    name="a request ends the engine, in 20 ways",
    claim="It ends two engines, then it is refused with 422 and never sent again. What was in flight with it is "
    "answered, sent again once at most (a stream that has begun ends in an error event, as the deployment wants it), "
    "and none of it is refused. Where broken streams are gone on with, nothing but the poison is a stream.",
    unit="kinds",
    full=20,
    short=3,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=120,
)
