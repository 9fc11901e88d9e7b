"""Clients that never stop asking, and notice every request that was not answered as it should be."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from yards import CHAT, RunningYard

# What a client meets that re-uses a connection at the very moment at which it is closed.
_IDLE_CLOSE = (aiohttp.ServerDisconnectedError, ConnectionResetError)
_RESET = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)


class BusyClients:
    """`async with BusyClients(yard, keep_alive=4, fresh=4) as clients:` asks until the block ends, half of it streamed.
    `failures` is every answer that was not whole. A kept connection that ended without one byte of an answer is what
    client libraries try again: counted in `idle_closes`, tried once more."""

    def __init__(self, yard: RunningYard, *, keep_alive: int, fresh: int, model: str = "small") -> None:
        self._yard, self._model = yard, model
        self._kinds = [False] * keep_alive + [True] * fresh
        self.answered = self.idle_closes = 0
        self.failures: list[str] = []
        self.key = yard.key
        self._stopping = False
        self._forgiven = 0
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask_on(number, fresh)) for number, fresh in enumerate(self._kinds)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def forgive_resets(self, *, most: int) -> None:
        """Something that clients are connected to is about to be killed: from now on so many resets are no failure."""
        self._forgiven = most

    async def more(self, count: int) -> None:
        """Until `count` more answers have come, or one has failed."""
        wanted = self.answered + count
        while self.answered < wanted and not self.failures:
            self._news.clear()
            await self._news.wait()

    async def _ask_on(self, number: int, fresh: bool) -> None:
        connector = (
            aiohttp.TCPConnector(force_close=True) if fresh else aiohttp.TCPConnector(limit=1, keepalive_timeout=600)
        )
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as http:
            turn = number
            while not self._stopping:
                turn += 1
                self._news.set()
                try:
                    try:
                        await self._ask(http, stream=turn % 2 == 0)
                    except _IDLE_CLOSE:
                        if fresh:
                            raise
                        self.idle_closes += 1
                        await self._ask(http, stream=turn % 2 == 0)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    if self._forgiven > 0 and isinstance(error, _RESET):
                        self._forgiven -= 1
                        continue
                    self.failures.append(f"{'fresh' if fresh else 'kept'}: {type(error).__name__}: {error}")

    async def _ask(self, http: aiohttp.ClientSession, *, stream: bool) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        headers = {"authorization": f"Bearer {self.key}"}
        url = f"{self._yard.listening.url}{CHAT}"
        async with http.post(url, json={**body, "stream": stream}, headers=headers) as answer:
            text = await answer.read()
        if answer.status != 200:
            self.failures.append(f"{answer.status}: {text[:200]!r}")
        elif stream and not text.endswith(b"data: [DONE]\n\n"):
            self.failures.append(f"a stream that ends with {text[-200:]!r}")
        elif not stream and "choices" not in msgspec.json.decode(text):
            self.failures.append(f"no answer: {text[:200]!r}")
        else:
            self.answered += 1
