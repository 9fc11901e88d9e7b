"""Replicas are killed in the middle of streams, and others go on: is what clients have one answer, to the byte?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from modelyard.records.journal import RequestRecord
from modelyard.records.topology import Failover, Replica
from modelyard.selftest.asking import CHAT, Asked, ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import chat
from modelyard.selftest.engines import Engine, Engines, Fakes
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.one_answer import Answer, NotOne, read_answer
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

TOKENS = 60
TOKEN_INTERVAL_S = 0.01
DEADLINE_S = 60.0
PIECES = ("w0", *(f" w{index}" for index in range(1, TOKENS)))
COMPLETIONS = "/v1/completions"
# So often that nothing but a replica's death ends a stream: here the budget is not what is tried. A few requests, asked
# over and over, are there at every death: nobody can tell them from poison.
FAILOVER = Failover(
    on_broken_stream="resume",
    retry_share=1.0,
    retries_per_s=100.0,
    sendings=8,
    eject_after=10_000,
    poison_deaths=0,
)
CLAIM = (
    "Another replica goes on: nothing is lost or doubled at the seam, what was delivered stays, one id, one role, one "
    "reason to finish, `[DONE]` at a complete end only; prompt and delivered tokens are billed once."
)


@dataclass(frozen=True)
class Question:
    body: dict[str, Any]
    path: str


@dataclass(frozen=True)
class Manner:
    """How it is done: so many replicas under so many streams at a time, each kill so long after a stream was seen.
    `wrong_with` says what is wrong with an answer that reads as one, `is_equal` whether its text is that of an
    uninterrupted run."""

    replicas: int
    streams: int
    strike_s: tuple[float, float]
    draw: Callable[[random.Random], Question]
    wrong_with: Callable[[Question, Answer], str]
    is_equal: Callable[[Question, Answer], bool]


class Fleet:
    """Replicas that are killed and come back as other launches."""

    def __init__(self, gateway: GatewayProcess, engines: Engines) -> None:
        self._gateway, self._engines = gateway, engines
        self._launches: list[int] = []
        self._running: list[Engine] = []

    async def start(self, replicas: int) -> None:
        self._launches = [0] * replicas
        self._running = [await self._engines.start(number) for number in range(replicas)]
        self._publish()

    async def kill(self, number: int) -> None:
        """SIGKILL, and another launch."""
        self._running[number].kill()
        await self._running[number].ended()
        self._running[number] = await self._engines.start(number)
        self._launches[number] += 1
        self._publish()

    async def is_streaming(self, number: int) -> bool:
        return await self._running[number].working() > 0

    def _publish(self) -> None:
        self._gateway.publish(deployment(*self._replicas(), failover=FAILOVER, **self._engines.facts))

    def _replicas(self) -> Iterator[Replica]:
        for number, (engine, launch) in enumerate(zip(self._running, self._launches, strict=True)):
            yield replica(engine.address, f"r{number}", launch=f"r{number}-{launch}")


async def run(bench: Bench) -> Outcome:
    engines = Fakes(bench, 64, tokens=TOKENS, token_interval_s=TOKEN_INTERVAL_S)
    gateway = await bench.gateway()
    fleet = Fleet(gateway, engines)
    await fleet.start(FAKES.replicas)
    return await kill_under(bench, gateway, fleet, FAKES)


async def kill_under(bench: Bench, gateway: GatewayProcess, fleet: Fleet, manner: Manner) -> Outcome:
    """Kill replicas of a fleet that runs, and judge every answer that was under way meanwhile."""
    tally, answers = Tally(), list[tuple[Question, Asked]]()
    await served(gateway)
    done = asyncio.Event()

    async def stream_on() -> None:
        while not done.is_set():
            question = manner.draw(bench.rng)
            answers.append((question, await ask(gateway, question.body, within_s=DEADLINE_S, path=question.path)))

    async with asyncio.TaskGroup() as group:
        for _ in range(manner.streams):
            group.create_task(stream_on())
        try:
            await _kill_all(bench, fleet, manner, tally)
        finally:
            done.set()
    _judge({record.request_id: record for record in gateway.records()}, answers, manner, tally)
    return tally.outcome()


async def _kill_all(bench: Bench, fleet: Fleet, manner: Manner, tally: Tally) -> None:
    for kill in range(bench.size):
        number = bench.rng.randrange(manner.replicas)
        waited_s = await until(lambda number=number: fleet.is_streaming(number), DEADLINE_S, every_s=0.01)
        tally.expect(waited_s is not None, f"kill {kill}: no stream came to replica {number}")
        await asyncio.sleep(bench.rng.uniform(*manner.strike_s))
        await fleet.kill(number)
        bench.progress(tally.tried())


async def served(gateway: GatewayProcess) -> None:
    """Until the gateway follows the topology."""

    async def is_served() -> bool:
        return (await ask(gateway, chat(MODEL, tokens=1), within_s=DEADLINE_S)).verdict == "whole"

    await until(is_served, DEADLINE_S)


def _judge(
    records: dict[str, RequestRecord], answers: list[tuple[Question, Asked]], manner: Manner, tally: Tally
) -> None:
    equal: dict[str, list[bool]] = {"resumed": [], "undisturbed under the same load": []}
    for question, asked in answers:
        record = records.get(asked.request_id)
        if record is None or asked.response is None:
            tally.wrong(f"{asked.verdict}, without a record: {asked.detail}")
            continue
        kind = "resumed" if record.resumed else "undisturbed under the same load"
        tally.saw(f"streams {kind}")
        tally.saw("replicas that died under a stream", record.resumed)
        tally.expect(record.outcome == "complete", f"{asked.request_id}: {record.outcome}: {record.error}")
        billed = (record.prompt_tokens, record.completion_tokens)
        try:
            answer = read_answer(question.body, asked.response.body, billed)
        except NotOne as error:
            wrong, is_equal = str(error), False
        else:
            wrong, is_equal = manner.wrong_with(question, answer), manner.is_equal(question, answer)
        tally.expect(not wrong, f"{asked.request_id}, resumed {record.resumed} times: {wrong}")
        equal[kind].append(is_equal)
    for kind, found in equal.items():
        if found:
            tally.figure(f"texts equal to an uninterrupted run, {kind}", 100 * sum(found) / len(found), "%")
    tally.expect(bool(equal["resumed"]), "no stream was resumed")


# What FakeEngines are asked, and what they must have said.


def _question(rng: random.Random) -> Question:
    """A chat or a completion, drawn from a seed or greedy, with or without usage, cut by its limit or whole."""
    sampling: dict[str, Any] = {"temperature": 0} if rng.random() < 0.5 else {"seed": rng.randrange(1000)}
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if rng.random() < 0.5 else {}
    tokens = rng.choice([TOKENS, TOKENS, TOKENS // 2])
    if rng.random() < 0.5:
        return Question(chat(MODEL, stream=True, tokens=tokens, **sampling, **usage), CHAT)
    body = {"model": MODEL, "prompt": "hello ", "max_tokens": tokens, "stream": True, **sampling, **usage}
    return Question(body, COMPLETIONS)


def wrong_with(question: Question, answer: Answer) -> str:
    """What is not as it would be without a death, "" if nothing."""
    wanted, pieces = PIECES[: question.body["max_tokens"]], answer.pieces
    if pieces != wanted:
        at = next((place for place, (a, b) in enumerate(zip(pieces, wanted, strict=False)) if a != b), len(pieces))
        return f"token {at} of {len(wanted)} is not the one that comes there: {pieces[max(at - 1, 0) : at + 2]}"
    return "" if answer.billed == (1, len(wanted)) else f"billed {answer.billed}, delivered {len(pieces)}"


FAKES = Manner(
    replicas=3,
    streams=8,
    strike_s=(0.0, TOKENS * TOKEN_INTERVAL_S / 2),
    draw=_question,
    wrong_with=wrong_with,
    is_equal=lambda question, answer: answer.pieces == PIECES[: question.body["max_tokens"]],
)
ROW = Row(
    key="resumed",
    name="replicas are killed in the middle of streams",
    claim=CLAIM,
    unit="kills",
    full=1000,
    short=5,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=340,
)
