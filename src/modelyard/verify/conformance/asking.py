"""Requests whose client may leave in the middle, and what an engine says of itself meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec

from modelyard.engines.contract import EngineMetrics
from modelyard.node.probes import open_session, read_engine_metrics
from modelyard.verify.answers import WrongAnswer
from modelyard.verify.conformance.stand import Launched
from modelyard.verify.conformance.subject import Subject
from modelyard.verify.replica import CHAT, COMPLETION, Replica, connect

LOOK_EVERY_S = 0.05
# A model that has read this goes on with it as long as it may: an answer that lasts.
_REPEATED = "la la la la la la la la " * 8


@dataclass(eq=False, slots=True)
class Stream:
    """One streamed request under way: `events` are its data lines as they came, `status` is None before the head.

    `ended` says how it ended: done (with [DONE]), cut (also by an error event), or left."""

    began_at: float
    events: list[bytes] = field(default_factory=list[bytes])
    status: int | None = None
    ended: str = ""
    ended_at: float = 0.0
    task: asyncio.Task[None] | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        return bool(self.ended)

    @property
    def whole(self) -> bool:
        return self.ended == "done"

    async def reach(self, events: int, within_s: float = 20.0) -> None:
        """Wait for so many events, or its end. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while len(self.events) < events and not self.is_over:
                self.moved.clear()
                await self.moved.wait()

    async def leave(self) -> None:
        """Close the connection, whatever has come."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    async def over(self) -> None:
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Running:
    """A launch that answers. `replica` asks it as clients do; `metrics` is what its adapter reads."""

    subject: Subject
    launched: Launched
    replica: Replica
    _streaming: aiohttp.ClientSession
    _probing: aiohttp.ClientSession

    async def metrics(self) -> EngineMetrics | None:
        return await read_engine_metrics(self._probing, self.launched.spec, self.subject.engine.read_metrics)

    async def until(
        self, holds: Callable[[EngineMetrics], bool], within_s: float
    ) -> tuple[EngineMetrics | None, float | None]:
        """Look until the metrics show it: the last look, and after how many seconds; None where it did not come."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            seen = await self.metrics()
            took_s = loop.time() - began
            if seen is not None and holds(seen):
                return seen, took_s
            if took_s > within_s:
                return seen, None
            await asyncio.sleep(LOOK_EVERY_S)

    def long_answer(self, max_tokens: int) -> Stream:
        """Ask for an answer that goes on until `max_tokens`."""
        if COMPLETION in self.subject.engine.capabilities.endpoints:
            return self._ask(COMPLETION, {"prompt": _REPEATED, "max_tokens": max_tokens})
        question = f"Go on with this song without an end: {_REPEATED}"
        return self._ask(CHAT, {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens})

    def long_prompt(self, beginning: str, tokens: int) -> Stream:
        """Ask for one token about a prompt of about `tokens`; another `beginning` shares no cached prefix."""
        content = f"{beginning} " + "one " * tokens
        return self._ask(CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 1})

    async def whole(self, content: str, max_tokens: int) -> bytes:
        """The body of an answer that is not streamed, as it came. Raises WrongAnswer."""
        message = {"role": "user", "content": content}
        body = {"model": self.replica.model, "messages": [message], "max_tokens": max_tokens, "temperature": 0}
        try:
            async with self._streaming.post(CHAT, json=body) as response:
                return await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise WrongAnswer(f"the connection broke: {error}") from error

    def _ask(self, path: str, fields: dict[str, object]) -> Stream:
        body = {"model": self.replica.model, "temperature": 0, "stream": True, **fields}
        stream = Stream(began_at=asyncio.get_running_loop().time())
        stream.task = asyncio.create_task(self._read(stream, path, msgspec.json.encode(body)))
        return stream

    async def _read(self, stream: Stream, path: str, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._streaming.post(path, data=body, headers={"content-type": "application/json"}) as response:
                stream.status = response.status
                async for line in response.content:
                    if line.startswith(b"data:"):
                        stream.events.append(line[5:].strip())
                        stream.moved.set()
            # Some engines send [DONE] after an error too: the error event is what tells.
            told = any(event.startswith(b'{"error"') for event in stream.events)
            stream.ended = "done" if stream.events[-1:] == [b"[DONE]"] and not told else "cut"
        except asyncio.CancelledError:
            stream.ended = "left"
            raise
        except (aiohttp.ClientError, OSError):
            stream.ended = "cut"
        finally:
            stream.ended_at = loop.time()
            stream.moved.set()


@asynccontextmanager
async def running(subject: Subject, launched: Launched) -> AsyncGenerator[Running]:
    """Connections to a launch; those still open are closed with the block."""
    spec, plan = launched.spec, subject.replica
    if spec.address.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(
            spec.address.removeprefix("unix:"), limit=0, force_close=True
        )
        base_url = "http://engine"
    else:
        connector, base_url = aiohttp.TCPConnector(limit=0, force_close=True), spec.address
    unlimited = aiohttp.ClientTimeout(total=None)
    async with (
        connect(spec.address, plan.served_name, plan.context_tokens) as replica,
        aiohttp.ClientSession(base_url, connector=connector, timeout=unlimited, trust_env=False) as streaming,
        open_session(spec) as probing,
    ):
        yield Running(subject, launched, replica, streaming, probing)
