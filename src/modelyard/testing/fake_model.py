"""The part of a FakeEngine that would own the accelerator: it admits, prefills, steps, hangs and dies.

Standard library only. Each answer is produced by a task of its own, as engines do: how fast a client reads does not
slow the production, and a client that leaves frees its place only if the task is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from modelyard.testing.fake_answers import Answer
from modelyard.testing.fake_knobs import Knobs

PREFILL_SLICE_S = 0.05


@dataclass(frozen=True)
class Job:
    """One request as the model sees it. `cached_tokens` of the `prompt_tokens` need no prefill."""

    prompt: str
    prompt_tokens: int
    cached_tokens: int
    answer: Answer


@dataclass
class Counters:
    """Since the start. `served` answers reached their end, `cancelled` ones lost their client before."""

    running: int = 0
    waiting: int = 0
    served: int = 0
    cancelled: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    tokens_held: int = field(default=0, repr=False)


class FakeModel:
    """Produces answers as its knobs say. While `not_hung` is clear, the counters of work stand still."""

    def __init__(self, knobs: Knobs) -> None:
        self.counters = Counters()
        self._knobs = knobs
        self._place_freed = asyncio.Event()
        self.not_hung = asyncio.Event()
        self.not_hung.set()
        self._left_behind: set[asyncio.Task[None]] = set()

    def turn(self, knobs: Knobs) -> None:
        """Go on with other knobs; a hang ends where no knob asks for one any more."""
        self._knobs = knobs
        self._wake_waiting()
        if knobs.hang_after_tokens is None and not knobs.hang_on_text:
            self.not_hung.set()

    async def tokens(self, job: Job) -> AsyncGenerator[str]:
        """The answer's tokens as they are produced. Closing the generator early gives up the place in the batch."""
        produced: asyncio.Queue[str | None] = asyncio.Queue()
        task = asyncio.create_task(self._produce(job, produced))
        begun = False
        try:
            while (piece := await produced.get()) is not None:
                begun = True
                yield piece
        finally:
            deaf = self._knobs.defect == ("cancel-decode" if begun else "cancel-prefill")
            if self._knobs.ignore_disconnects or deaf:
                self._left_behind.add(task)
                task.add_done_callback(self._left_behind.discard)
            else:
                task.cancel()

    async def _produce(self, job: Job, produced: asyncio.Queue[str | None]) -> None:
        try:
            async with self._place(job):
                await self._prefill(job)
                await self._misbehave(job, 0)
                for made, piece in enumerate(job.answer.pieces, start=1):
                    await self._step(self._knobs.token_interval_s)
                    self.counters.generation_tokens += 1
                    produced.put_nowait(piece)
                    await self._misbehave(job, made)
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise
        self.counters.served += 1
        produced.put_nowait(None)

    @asynccontextmanager
    async def _place(self, job: Job) -> AsyncGenerator[None]:
        """One of the `max_sequences` places of the batch, first come first served."""
        self.counters.waiting += 1
        try:
            while self.counters.running >= self._knobs.max_sequences:
                await self._place_freed.wait()
        finally:
            self.counters.waiting -= 1
        held = job.prompt_tokens + len(job.answer.pieces)
        self.counters.running += 1
        self.counters.tokens_held += held
        try:
            yield
        finally:
            self.counters.running -= 1
            self.counters.tokens_held -= held
            self._wake_waiting()

    async def until_idle(self) -> None:
        """Wait until nothing runs and nothing waits."""
        while self.counters.running or self.counters.waiting:
            await self._place_freed.wait()

    def _wake_waiting(self) -> None:
        """All who wait look again, in their order; a new event keeps late comers behind them."""
        self._place_freed.set()
        self._place_freed = asyncio.Event()

    async def _prefill(self, job: Job) -> None:
        duration_s = self._knobs.prefill_s + self._knobs.prefill_token_s * (job.prompt_tokens - job.cached_tokens)
        slices = max(1, round(duration_s / PREFILL_SLICE_S))
        self.counters.cached_prompt_tokens += job.cached_tokens
        for index in range(slices):
            await self._step(duration_s / slices, counted=self._knobs.defect != "work-done")
            done, before = job.prompt_tokens * (index + 1) // slices, job.prompt_tokens * index // slices
            self.counters.prompt_tokens += done - before

    async def _step(self, duration_s: float, *, counted: bool = True) -> None:
        await self.not_hung.wait()
        await asyncio.sleep(duration_s)
        await self.not_hung.wait()
        self.counters.steps += counted

    async def _misbehave(self, job: Job, made: int) -> None:
        """What the knobs ask for once `made` tokens of an answer are out."""
        knobs = self._knobs
        is_poison = bool(knobs.crash_on_text) and knobs.crash_on_text in job.prompt
        if made == knobs.crash_after_tokens or (is_poison and made == knobs.crash_on_text_after):
            await asyncio.sleep(0)  # what is produced leaves first
            crash()
        if made == knobs.hang_after_tokens or (knobs.hang_on_text and knobs.hang_on_text in job.prompt):
            self.not_hung.clear()
            await self.not_hung.wait()


def crash() -> None:
    """End as a native library ends a process: no clean-up, the kernel closes the sockets."""
    print("Traceback (most recent call last):\nRuntimeError: the device went away", flush=True)
    os._exit(1)
