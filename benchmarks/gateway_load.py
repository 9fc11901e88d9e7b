"""The load generator: a process that takes one JSON job a line on stdin and answers one JSON line.

`open` makes connections, `unary` and `streams` use them in a closed loop, `close` drops them. Whoever drives it reads
CPU clocks between the lines, while nothing runs. A response that is not what the mock engine said ends the job with
`error`: a fast wrong proxy has no place in the table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.figures import percentile
from benchmarks.gateway_texts import (
    ANSWER,
    STREAM_INTERVAL_S,
    answer_says,
    expected_stream,
    messages_body,
    messages_say,
    stream_body,
    stream_says,
    unary_body,
)
from benchmarks.jobs import WrongResult, answer_jobs
from benchmarks.wire import Connection, arrivals, connect, events_of, post

PATH = "/v1/chat/completions"
MESSAGES_PATH = "/v1/messages"
SILENCE_S = 20.0


class Open(msgspec.Struct, tag="open"):
    """`rewritten`: the subject decodes answers and encodes them again, so that only what they say can be compared."""

    address: str
    key: str
    model: str
    connections: int
    rewritten: bool = False


class Unary(msgspec.Struct, tag="unary"):
    count: int
    body_bytes: int


class Streams(msgspec.Struct, tag="streams"):
    """`translated`: asked in Anthropic's dialect, so that every event of the engine's has to be told anew."""

    events: int
    translated: bool = False


class Close(msgspec.Struct, tag="close"):
    pass


class UnaryResult(msgspec.Struct):
    requests: int
    elapsed_s: float
    p50_s: float
    p99_s: float
    reopened: int


class StreamsResult(msgspec.Struct):
    """`events` counts what clients received, or what the engine sent where a proxy cuts events anew; gaps are those
    between the events of one stream."""

    requests: int
    events: int
    elapsed_s: float
    gap_p50_s: float
    gap_p99_s: float
    gap_max_s: float
    reopened: int


@dataclass
class Load:
    """The connections of one subject. A job hands each finished response to `judge`, which sends the next request or
    counts the connection as done."""

    target: Open
    connections: list[Connection] = field(default_factory=list[Connection])
    reopened: int = 0
    judge: Callable[[Connection], None] = lambda connection: None

    async def open(self) -> None:
        for _ in range(self.target.connections):
            self.connections.append(await self._connect())

    async def _connect(self) -> Connection:
        return await connect(self.target.address, lambda done: self.judge(done), self._lost)

    def _lost(self, reason: str) -> None:
        self._fail(WrongResult(reason))

    def _fail(self, error: Exception) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)

    async def reopen_closed(self) -> None:
        """Between jobs: a proxy may close after a stream. Within a job a closed connection is an error."""
        for index, connection in enumerate(self.connections):
            if connection.transport.is_closing():
                self.connections[index] = await self._connect()
                self.reopened += 1

    async def unary(self, job: Unary) -> UnaryResult:
        await self._begin()
        request = post(self.target.address, PATH, self.target.key, unary_body(self.target.model, job.body_bytes))
        latencies: list[float] = []
        unsent = job.count

        def judge(connection: Connection) -> None:
            nonlocal unsent
            latencies.append(perf_counter() - connection.sent_at)
            if connection.status != 200 or not self._is_the_answer(connection.body):
                self._fail(WrongResult(f"status {connection.status}, body {connection.body[:300]!r}"))
            elif unsent:
                unsent -= 1
                connection.send(request)
            elif len(latencies) == job.count:
                self.finished.set_result(None)

        self.judge = judge
        began = perf_counter()
        for connection in self.connections[: job.count]:
            unsent -= 1
            connection.send(request)
        await self._finish()
        elapsed_s = perf_counter() - began
        return UnaryResult(
            len(latencies), elapsed_s, percentile(latencies, 50), percentile(latencies, 99), self.reopened
        )

    def _is_the_answer(self, body: bytes) -> bool:
        return says_the_same(answer_says, body, answer_says(ANSWER)) if self.target.rewritten else body == ANSWER

    async def streams(self, job: Streams) -> StreamsResult:
        """One stream for each connection; they begin spread over one interval, as independent clients do."""
        await self._begin()
        requests = [self._stream_request(stream, job) for stream in range(len(self.connections))]
        done: list[Connection] = []

        def judge(connection: Connection) -> None:
            done.append(connection)
            if len(done) == len(self.connections):
                self.finished.set_result(None)

        self.judge = judge
        loop, began = asyncio.get_running_loop(), perf_counter()
        for stream, connection in enumerate(self.connections):
            connection.tag = stream
            loop.call_later(STREAM_INTERVAL_S * stream / len(self.connections), connection.send, requests[stream])
        await self._finish()
        return self._check_streams(job.events, perf_counter() - began, translated=job.translated)

    def _stream_request(self, stream: int, job: Streams) -> bytes:
        target = self.target
        if job.translated:
            return post(target.address, MESSAGES_PATH, target.key, messages_body(target.model, job.events))
        return post(target.address, PATH, target.key, stream_body(target.model, stream, job.events))

    def _check_streams(self, events: int, elapsed_s: float, *, translated: bool) -> StreamsResult:
        gaps: list[float] = []
        received = 0
        for connection in self.connections:
            expected = expected_stream(0 if translated else connection.tag, events)
            got = events_of(connection.body)
            if translated:
                is_right = says_the_same(messages_say, got, stream_says(events_of(expected)))
            else:
                is_right = self._is_the_stream(got, expected)
            if connection.status != 200 or not is_right:
                raise WrongResult(first_difference(connection.tag, connection.status, got, events_of(expected)))
            times = arrivals(connection.pieces)
            received += events + 1 if self.target.rewritten or translated else len(times)
            # [DONE] follows the last event at once and says nothing about the pace.
            gaps += [later - earlier for earlier, later in pairwise(times[:-1])]
        return StreamsResult(
            requests=len(self.connections),
            events=received,
            elapsed_s=elapsed_s,
            gap_p50_s=percentile(gaps, 50),
            gap_p99_s=percentile(gaps, 99),
            gap_max_s=max(gaps),
            reopened=self.reopened,
        )

    def _is_the_stream(self, got: list[bytes], expected: bytes) -> bool:
        if self.target.rewritten:
            return says_the_same(stream_says, got, stream_says(events_of(expected)))
        return b"".join(got) == expected

    async def _begin(self) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)  # see what closed since the last job
        await self.reopen_closed()

    async def _finish(self) -> None:
        """Wait for the job's end; give up where no byte came for SILENCE_S."""
        while True:
            await asyncio.wait([self.finished], timeout=SILENCE_S)
            if self.finished.done():
                return self.finished.result()
            if perf_counter() - max(connection.active_at for connection in self.connections) > SILENCE_S:
                waiting = sum(connection.busy for connection in self.connections)
                raise WrongResult(f"{waiting} requests without an answer, nothing came for {SILENCE_S:g} s")

    def close(self) -> None:
        for connection in self.connections:
            connection.transport.abort()


def says_the_same(reader: Callable[[Any], object], got: object, expected: object) -> bool:
    """Whether `got` says what is expected; what cannot be read says nothing."""
    try:
        return reader(got) == expected
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def first_difference(stream: int, status: int, got: list[bytes], expected: list[bytes]) -> str:
    """Where a stream left what the engine said."""
    place = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        place = min(len(got), len(expected))
    return (
        f"stream {stream} (status {status}, {len(got)} events of {len(expected)}), event {place}: "
        f"got {got[place : place + 1]!r}, the engine said {expected[place : place + 1]!r}"
    )


class Generator:
    """Runs jobs one after another; between two of them nothing of this process runs."""

    def __init__(self) -> None:
        self.load: Load | None = None

    async def run(self, job: Open | Unary | Streams | Close) -> object:
        if isinstance(job, Open):
            self.load = Load(job)
            await self.load.open()
            return {"connections": len(self.load.connections)}
        assert self.load is not None
        if isinstance(job, Close):
            self.load.close()
            self.load = None
            await asyncio.sleep(0)  # aborted transports close in the loop's next turn
            return {}
        return await (self.load.unary(job) if isinstance(job, Unary) else self.load.streams(job))


if __name__ == "__main__":
    answer_jobs(Generator().run, Open | Unary | Streams | Close)
