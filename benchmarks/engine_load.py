"""The light streaming client of the engine benchmark: one job a line, see benchmarks/jobs.py."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import msgspec

from benchmarks.gateway_texts import DONE
from benchmarks.jobs import WrongResult, answer_jobs
from benchmarks.wire import Connection, arrivals, connect, events_of, post


class Chats(msgspec.Struct):
    """Every prompt once, by as many clients as `concurrency` says."""

    address: str
    key: str
    model: str
    concurrency: int
    max_tokens: int
    prompts: list[str]


class ChatsResult(msgspec.Struct):
    """Tokens are the engine's own count; `elapsed_s` runs from the first byte sent to the last received. The lists are
    in the order of the prompts: the time to the first text, the longest time between two pieces of text, the text."""

    tokens: int
    elapsed_s: float
    first_token_s: list[float]
    longest_gap_s: list[float]
    answers: list[str]


class Usage(msgspec.Struct):
    completion_tokens: int


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta = msgspec.field(default_factory=Delta)


class Event(msgspec.Struct):
    choices: list[Choice] = msgspec.field(default_factory=list[Choice])
    usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(choice.delta.content or "" for choice in self.choices)


def completion_tokens(body: bytes) -> int:
    """From the usage event; a stream without it or without its end is no result."""
    events = events_of(body)
    if len(events) < 3 or events[-1] != DONE:
        raise WrongResult(f"a stream without its end: {body[-300:]!r}")
    usage = msgspec.json.decode(events[-2].removeprefix(b"data:"), type=Event).usage
    if usage is None:
        raise WrongResult(f"a stream without usage: {body[-300:]!r}")
    return usage.completion_tokens


@dataclass(frozen=True)
class Told:
    """One finished stream."""

    tokens: int
    first_token_s: float
    longest_gap_s: float
    text: str


def told(connection: Connection) -> Told:
    """Raises WrongResult where the stream is not whole or said nothing."""
    if connection.status != 200:
        raise WrongResult(f"status {connection.status}: {connection.body[:300]!r}")
    tokens = completion_tokens(connection.body)
    events = [msgspec.json.decode(raw.removeprefix(b"data:"), type=Event) for raw in events_of(connection.body)[:-1]]
    # [DONE] has no text and no place in `events`; its arrival is the last.
    spoken = [at for at, event in zip(arrivals(connection.pieces), events, strict=False) if event.text]
    if not spoken:
        raise WrongResult(f"a stream without text: {connection.body[-300:]!r}")
    gaps = [later - earlier for earlier, later in pairwise(spoken)]
    text = "".join(event.text for event in events)
    return Told(tokens, spoken[0] - connection.sent_at, max(gaps, default=0.0), text)


async def run(job: Chats) -> ChatsResult:
    waiting = deque(enumerate(job.prompts))
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answers: dict[int, Told] = {}

    def fail(reason: str) -> None:
        if not finished.done():
            finished.set_exception(WrongResult(reason))

    def ask(connection: Connection) -> None:
        connection.tag, prompt = waiting.popleft()
        connection.send(post(job.address, "/v1/chat/completions", job.key, _body(job, prompt)))

    def done(connection: Connection) -> None:
        try:
            answers[connection.tag] = told(connection)
        except (WrongResult, msgspec.MsgspecError) as error:
            return fail(str(error))
        if waiting:
            ask(connection)
        elif len(answers) == len(job.prompts) and not finished.done():
            finished.set_result(None)

    clients = [await connect(job.address, done, fail) for _ in range(job.concurrency)]
    began = perf_counter()
    for client in clients[: len(job.prompts)]:
        ask(client)
    await finished
    elapsed_s = perf_counter() - began
    for client in clients:
        client.transport.abort()
    await asyncio.sleep(0)
    in_order = [answers[number] for number in range(len(job.prompts))]
    return ChatsResult(
        tokens=sum(one.tokens for one in in_order),
        elapsed_s=elapsed_s,
        first_token_s=[one.first_token_s for one in in_order],
        longest_gap_s=[one.longest_gap_s for one in in_order],
        answers=[one.text for one in in_order],
    )


def _body(job: Chats, prompt: str) -> bytes:
    fields = {
        "model": job.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(fields, separators=(",", ":")).encode()


if __name__ == "__main__":
    answer_jobs(run, Chats)
