"""Clients that notice everything: each request ends as one of six verdicts, a hang among them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import httptools

from benchmarks.wire import events_of, post

# whole: the complete, right answer. unavailable: 503 with Retry-After. cut: a stream that ended in an explicit error
# event. reset: the connection ended first. hung: nothing of that before the deadline. wrong: anything else.
Verdict = Literal["whole", "unavailable", "cut", "reset", "hung", "wrong"]
VERDICTS: tuple[Verdict, ...] = ("whole", "unavailable", "cut", "reset", "hung", "wrong")
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """How one request ended. Times are monotonic seconds; `opened_at` is when its connection was opened."""

    verdict: Verdict
    request_id: str
    opened_at: float
    sent_at: float
    ended_at: float
    detail: str = ""

    @property
    def was_received(self) -> bool:
        return self.verdict in ("whole", "unavailable", "cut")


@dataclass(frozen=True)
class Question:
    """`expected` is the text of the right answer, None where any text is."""

    body: bytes
    stream: bool
    expected: str | None


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self) -> None:
        self.opened_at = time.monotonic()
        self.open = True
        self.headers: dict[str, str] = {}
        self._body = bytearray()
        self._done: asyncio.Future[bool] | None = None

    async def exchange(self, request: bytes) -> tuple[int, bytes] | None:
        """Status and body; None where the connection ends before the response does."""
        self.headers.clear()
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        if self.open:
            self._transport.write(request)
        else:
            self._done.set_result(False)
        whole = await self._done
        return (self._parser.get_status_code(), bytes(self._body)) if whole else None

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.open = self.open and self._parser.should_keep_alive()
        self._settle(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._settle(False)

    def _settle(self, whole: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(whole)


class Client:
    """Asks one question after the other, over one connection as long as that lives."""

    def __init__(self, port: int, key: str, deadline_s: float) -> None:
        self._port, self._key, self._deadline_s = port, key, deadline_s
        self._connection: Connection | None = None

    async def ask(self, question: Question) -> Answer:
        sent_at = opened_at = time.monotonic()
        reply: tuple[int, bytes] | None = None
        headers: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._deadline_s):
                connection = await self._connected()
                opened_at, headers = connection.opened_at, connection.headers
                request = post(f"http://127.0.0.1:{self._port}", PATH, self._key, question.body)
                reply = await connection.exchange(request)
            if reply is None:
                verdict, detail = "reset", "the connection ended"
            else:
                verdict, detail = judge(question, reply[0], headers, reply[1])
        except TimeoutError:
            verdict, detail = "hung", f"no end within {self._deadline_s:g} s"
            self.close()
        except OSError as error:
            verdict, detail = "reset", f"no connection: {error.strerror}"
        request_id = headers.get("x-request-id", "")
        return Answer(verdict, request_id, opened_at, sent_at, time.monotonic(), detail)

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.open:
            self.close()
            loop = asyncio.get_running_loop()
            _, self._connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def judge(question: Question, status: int, headers: dict[str, str], body: bytes) -> tuple[Verdict, str]:
    """The verdict on a response that was received to its end."""
    try:
        if status == 503:
            is_well_said = headers.get("retry-after", "").isdigit() and "error" in json.loads(body)
            return ("unavailable", "") if is_well_said else ("wrong", f"a 503 without Retry-After: {body[:200]!r}")
        if status != 200:
            return "wrong", f"status {status}: {body[:200]!r}"
        return _judge_stream(question, body) if question.stream else _judge_plain(question, body)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return "wrong", f"{type(error).__name__} {error}: {body[-200:]!r}"


def _judge_plain(question: Question, body: bytes) -> tuple[Verdict, str]:
    choice = json.loads(body)["choices"][0]
    return _judge_text(question, choice["message"]["content"], choice["finish_reason"])


def _judge_stream(question: Question, body: bytes) -> tuple[Verdict, str]:
    *events, last = [event.removeprefix(b"data:").strip() for event in events_of(body)]
    values: list[dict[str, Any]] = [json.loads(event) for event in events]
    choices = [value["choices"][0] for value in values if value.get("choices")]
    finished = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if last != b"[DONE]":
        is_explicit = "error" in json.loads(last) and not finished and not any("error" in value for value in values)
        return ("cut", "") if is_explicit else ("wrong", f"a stream that ends with {last[:200]!r} after {finished}")
    return _judge_text(question, "".join(choice["delta"].get("content") or "" for choice in choices), finished[0])


def _judge_text(question: Question, text: str, finish_reason: str) -> tuple[Verdict, str]:
    if finish_reason not in ("stop", "length"):
        return "wrong", f"finish_reason {finish_reason!r}"
    if question.expected is not None and text != question.expected:
        return "wrong", f"{text[-80:]!r} instead of {question.expected[-80:]!r}"
    return "whole", ""


class Load:
    """Clients that ask without end while the gate is open; `answers` grows as they are answered."""

    def __init__(
        self, clients: Iterable[Client], ask_about: Callable[[random.Random], Question], rng: random.Random
    ) -> None:
        self.answers: list[Answer] = []
        self.in_flight = 0
        self._ask_about = ask_about
        self._gate = asyncio.Event()
        self._quiet = asyncio.Condition()
        self._clients = [(client, random.Random(rng.random())) for client in clients]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask_forever(*one)) for one in self._clients]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client, _dice in self._clients:
            client.close()

    def go_on(self) -> None:
        self._gate.set()

    def hold(self) -> None:
        """Begin no new request; those in flight go on."""
        self._gate.clear()

    async def quiet(self) -> None:
        """Until no request is in flight; each has its deadline, so this comes."""
        async with self._quiet:
            await self._quiet.wait_for(lambda: self.in_flight == 0)

    async def _ask_forever(self, client: Client, rng: random.Random) -> None:
        while True:
            await self._gate.wait()
            self.in_flight += 1
            answer = await client.ask(self._ask_about(rng))
            self.in_flight -= 1
            self.answers.append(answer)
            async with self._quiet:
                self._quiet.notify_all()
            if answer.verdict != "whole":
                await asyncio.sleep(0.05 + 0.15 * rng.random())


def counts_of(answers: Iterable[Answer]) -> Counter[Verdict]:
    return Counter(answer.verdict for answer in answers)


async def until(
    condition: Callable[[], bool | Awaitable[bool]], within_s: float, every_s: float = 0.02
) -> float | None:
    """How long it took (seconds) until the condition held; None where it did not within `within_s`."""
    began = time.monotonic()
    while True:
        value = condition()
        holds = value if isinstance(value, bool) else await value
        took_s = time.monotonic() - began
        if holds:
            return took_s
        if took_s > within_s:
            return None
        await asyncio.sleep(every_s)
