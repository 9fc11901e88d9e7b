"""The light streaming client of the engine benchmark: one job a line, see benchmarks/jobs.py."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from time import perf_counter

import msgspec

from benchmarks.gateway_texts import DONE
from benchmarks.jobs import WrongResult, answer_jobs
from benchmarks.wire import Connection, connect, events_of, post


class Chats(msgspec.Struct):
    """Every prompt once, by as many clients as `concurrency` says."""

    address: str
    key: str
    model: str
    concurrency: int
    max_tokens: int
    prompts: list[str]


class ChatsResult(msgspec.Struct):
    """Tokens are the engine's own count; `elapsed_s` runs from the first byte sent to the last received."""

    tokens: int
    elapsed_s: float
    first_token_s: list[float]


class Usage(msgspec.Struct):
    completion_tokens: int


class Event(msgspec.Struct):
    usage: Usage | None = None


def completion_tokens(body: bytes) -> int:
    """From the usage event; a stream without it or without its end is no result."""
    events = events_of(body)
    if len(events) < 3 or events[-1] != DONE:
        raise WrongResult(f"a stream without its end: {body[-300:]!r}")
    usage = msgspec.json.decode(events[-2].removeprefix(b"data:"), type=Event).usage
    if usage is None:
        raise WrongResult(f"a stream without usage: {body[-300:]!r}")
    return usage.completion_tokens


async def run(job: Chats) -> ChatsResult:
    waiting = deque(post(job.address, "/v1/chat/completions", job.key, _body(job, prompt)) for prompt in job.prompts)
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tokens: list[int] = []
    first_token_s: list[float] = []

    def fail(reason: str) -> None:
        if not finished.done():
            finished.set_exception(WrongResult(reason))

    def done(connection: Connection) -> None:
        if connection.status != 200:
            return fail(f"status {connection.status}: {connection.body[:300]!r}")
        try:
            tokens.append(completion_tokens(connection.body))
        except WrongResult as error:
            return fail(str(error))
        first_token_s.append(connection.pieces[0][0] - connection.sent_at)
        if waiting:
            connection.send(waiting.popleft())
        elif len(tokens) == len(job.prompts) and not finished.done():
            finished.set_result(None)

    clients = [await connect(job.address, done, fail) for _ in range(job.concurrency)]
    began = perf_counter()
    for client in clients[: len(job.prompts)]:
        client.send(waiting.popleft())
    await finished
    elapsed_s = perf_counter() - began
    for client in clients:
        client.transport.abort()
    await asyncio.sleep(0)
    return ChatsResult(sum(tokens), elapsed_s, first_token_s)


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
