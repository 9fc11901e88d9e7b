"""What rows kill: engines that are started as often as wanted, pretended ones here, real ones in real_engines.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from modelyard.selftest.bench import Bench


class Engine(Protocol):
    """One launch."""

    @property
    def address(self) -> str: ...

    def kill(self) -> None:
        """SIGKILL, now."""
        ...

    async def ended(self) -> object:
        """Returns when nothing of it is left."""
        ...

    async def working(self) -> float:
        """How many requests it computes and keeps waiting, by its own word."""
        ...


class Engines(Protocol):
    """Where launches come from, all of one model. `facts` are the fields of a Deployment that follow from the engine;
    `sequences` is how many requests a launch computes at once; `text` is the answer to a request for so many tokens,
    None where only the engine knows it."""

    facts: Mapping[str, Any]
    sequences: int

    async def start(self, number: int = 0) -> Engine:
        """Another launch of replica `number`, ready."""
        ...

    def text(self, tokens: int) -> str | None: ...


class Fakes:
    """FakeEngines with the same knobs; all launches of a replica have one address."""

    facts: Mapping[str, Any] = {"continues_chat": True}

    def __init__(self, bench: Bench, sequences: int, **knobs: float) -> None:
        self.sequences = sequences
        self._bench, self._knobs = bench, knobs

    async def start(self, number: int = 0) -> Engine:
        address = f"unix:{self._bench.state.sockets / f'engine{number}.sock'}"
        return await self._bench.engine(until="ready", address=address, max_sequences=self.sequences, **self._knobs)

    def text(self, tokens: int) -> str | None:
        return " ".join(f"w{index}" for index in range(tokens))
