"""Replicas are killed in the middle of streams, and others go on: is what clients have one answer, to the byte?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from modelyard.records.topology import Failover, Replica
from modelyard.selftest.asking import CHAT, Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import chat
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.testing import FakeEngine

REPLICAS = 3
STREAMS = 8
TOKENS = 60
TOKEN_INTERVAL_S = 0.01
DEADLINE_S = 30.0
PIECES = ["w0", *(f" w{index}" for index in range(1, TOKENS))]
# So often that nothing but a replica's death ends a stream: here the budget is not what is tried. A few requests, asked
# over and over, are under every death: no engine can tell them from poison.
FAILOVER = Failover(
    on_broken_stream="resume",
    retry_share=1.0,
    retries_per_s=100.0,
    sendings=8,
    eject_after=10_000,
    poison_deaths=0,
)


class Fleet:
    """Replicas that are killed and come back as other launches."""

    def __init__(self, bench: Bench, gateway: GatewayProcess) -> None:
        self._bench, self._gateway = bench, gateway
        self._launches = [0] * REPLICAS
        self.engines: list[FakeEngine] = []

    async def start(self) -> None:
        for number in range(REPLICAS):
            self.engines.append(await self._engine(number))
        self._publish()

    async def kill(self, number: int) -> None:
        """SIGKILL, and another launch at the same address."""
        self.engines[number].kill()
        await self.engines[number].ended()
        self.engines[number] = await self._engine(number)
        self._launches[number] += 1
        self._publish()

    async def is_streaming(self, number: int) -> bool:
        return (await self.engines[number].seen())["counters"]["running"] > 0

    async def _engine(self, number: int) -> FakeEngine:
        return await self._bench.engine(
            address=f"unix:{self._bench.state.sockets / f'{number}.sock'}",
            tokens=TOKENS,
            token_interval_s=TOKEN_INTERVAL_S,
        )

    def _publish(self) -> None:
        self._gateway.publish(deployment(*self._replicas(), failover=FAILOVER, continues_chat=True))

    def _replicas(self) -> Iterator[Replica]:
        for number, engine in enumerate(self.engines):
            yield replica(engine, f"r{number}", launch=f"r{number}-{self._launches[number]}")


async def run(bench: Bench) -> Outcome:
    tally, answers = Tally(), list[tuple[dict[str, Any], Asked]]()
    gateway = await bench.gateway()
    fleet = Fleet(bench, gateway)
    await fleet.start()
    await until(lambda: _is_served(gateway), DEADLINE_S)
    done = asyncio.Event()

    async def stream_on() -> None:
        while not done.is_set():
            body, path = _request(bench)
            answers.append((body, await ask(gateway, body, within_s=DEADLINE_S, path=path)))

    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(stream_on())
        try:
            await _kill_all(bench, fleet, tally)
        finally:
            done.set()
    _judge(gateway, answers, tally)
    return tally.outcome()


async def _kill_all(bench: Bench, fleet: Fleet, tally: Tally) -> None:
    for kill in range(bench.size):
        number = bench.rng.randrange(REPLICAS)
        waited_s = await until(lambda number=number: fleet.is_streaming(number), DEADLINE_S, every_s=0.01)
        tally.expect(waited_s is not None, f"kill {kill}: no stream came to replica {number}")
        await asyncio.sleep(bench.rng.uniform(0, TOKENS * TOKEN_INTERVAL_S / 2))
        await fleet.kill(number)
        bench.progress(tally.tried())


def _request(bench: Bench) -> tuple[dict[str, Any], str]:
    """A chat or a completion, drawn from a seed or greedy, with or without usage, cut by its limit or whole."""
    rng = bench.rng
    sampling: dict[str, Any] = {"temperature": 0} if rng.random() < 0.5 else {"seed": rng.randrange(1000)}
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if rng.random() < 0.5 else {}
    tokens = rng.choice([TOKENS, TOKENS, TOKENS // 2])
    if rng.random() < 0.5:
        return chat(MODEL, stream=True, tokens=tokens, **sampling, **usage), CHAT
    body = {"model": MODEL, "prompt": "hello ", "max_tokens": tokens, "stream": True, **sampling, **usage}
    return body, "/v1/completions"


async def _is_served(gateway: GatewayProcess) -> bool:
    return (await ask(gateway, chat(MODEL, tokens=1), within_s=DEADLINE_S)).verdict == "whole"


def _judge(gateway: GatewayProcess, answers: list[tuple[dict[str, Any], Asked]], tally: Tally) -> None:
    records = {record.request_id: record for record in gateway.records()}
    equal, all_of = {True: 0, False: 0}, {True: 0, False: 0}
    for body, asked in answers:
        record = records.get(asked.request_id)
        if record is None or asked.response is None:
            tally.wrong(f"{asked.verdict}, without a record: {asked.detail}")
            continue
        resumed = record.resumed > 0
        tally.saw("streams resumed" if resumed else "streams undisturbed")
        tally.saw("replicas that died under a stream", record.resumed)
        all_of[resumed] += 1
        if wrong := wrong_with(body, asked.response.body, record.prompt_tokens, record.completion_tokens):
            tally.wrong(f"{asked.request_id}, resumed {record.resumed} times: {wrong}")
        else:
            equal[resumed] += 1
        tally.expect(record.outcome == "complete", f"{asked.request_id}: {record.outcome}: {record.error}")
    for resumed, name in ((True, "resumed"), (False, "undisturbed")):
        if all_of[resumed]:
            tally.figure(f"texts equal to an uninterrupted run, {name}", 100 * equal[resumed] / all_of[resumed], "%")
    tally.expect(all_of[True] > 0, "no stream was resumed")


def wrong_with(body: dict[str, Any], sent: bytes, prompt_tokens: int, completion_tokens: int) -> str:
    """What is not as it would be without a death, "" if nothing: events, their order and identity, the end, the usage
    that the client was told, and what was billed."""
    *events, last, rest = sent.split(b"\n\n")
    if last != b"data: [DONE]" or rest:
        return f"it ends with {last[-200:]!r}"
    values: list[dict[str, Any]] = [json.loads(event.removeprefix(b"data:")) for event in events]
    wanted = PIECES[: body["max_tokens"]]
    choices = [value["choices"][0] for value in values if value["choices"]]
    texts = [text for choice in choices if (text := _text_of(choice))]
    if texts != wanted:
        at = next((place for place, (a, b) in enumerate(zip(texts, wanted, strict=False)) if a != b), len(texts))
        return f"token {at} of {len(wanted)} is not the one that comes there: {texts[at - 1 : at + 2]}"
    if len({(value["id"], value["created"]) for value in values}) != 1:
        return "more than one id"
    if (roles := sum("role" in choice.get("delta", {}) for choice in choices)) != ("messages" in body):
        return f"{roles} roles"
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if len(reasons) != 1:
        return f"finish reasons {reasons}"
    usages = [value["usage"] for value in values if value.get("usage")]
    if len(usages) != ("stream_options" in body):
        return f"{len(usages)} usage events"
    told = [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages]
    if any(one != (prompt_tokens, completion_tokens) for one in told) or (prompt_tokens, completion_tokens) != (
        1,
        len(wanted),
    ):
        return f"billed {prompt_tokens} + {completion_tokens}, told {told}, delivered {len(texts)}"
    return ""


def _text_of(choice: dict[str, Any]) -> str:
    return choice["delta"].get("content") or "" if "delta" in choice else choice["text"]


ROW = Row(
    key="resumed",
    name="replicas are killed in the middle of streams",
    claim="Another replica goes on: nothing is lost or doubled at the seam, what was delivered stays, one id, one "
    "role, one reason to finish, `[DONE]` at a complete end only; prompt and delivered tokens are billed once.",
    unit="kills",
    full=1000,
    short=5,
    run=run,
    sources=("gateway", "records", "testing"),
    takes_s=900,
)
