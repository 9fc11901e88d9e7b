"""Clients that notice everything, and ask without end: each request ends as one of six verdicts, a hang among them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelyard.selftest.asking import CHAT, Verdict, judge
from modelyard.selftest.connection import Connection, Lost, connect, post


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


class Client:
    """Asks one question after the other, over one connection as long as that lives."""

    def __init__(self, port: int, key: str, deadline_s: float) -> None:
        self._port, self._key, self._deadline_s = port, key, deadline_s
        self._connection: Connection | None = None

    async def ask(self, question: Question) -> Answer:
        sent_at = opened_at = time.monotonic()
        request_id = ""
        try:
            connection = await self._connected()
            opened_at = connection.opened_at
            response = await connection.ask(post(CHAT, self._key, question.body), self._deadline_s)
            request_id = response.headers.get("x-request-id", "")
            verdict, detail = judge(
                response.status, response.headers, response.body, question.stream, question.expected
            )
        except TimeoutError:
            verdict, detail = "hung", f"no end within {self._deadline_s:g} s"
            self.close()
        except Lost:
            verdict, detail = "reset", "the connection ended"
        except OSError as error:
            verdict, detail = "reset", f"no connection: {error.strerror}"
        return Answer(verdict, request_id, opened_at, sent_at, time.monotonic(), detail)

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.open:
            self.close()
            self._connection = await connect(f"http://127.0.0.1:{self._port}")
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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
