"""What a row works with: a state directory of its own, gateways and engines as real processes, dice, progress."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self

from modelyard.records.topology import Deployment, Policy, Replica
from modelyard.selftest.connection import Connection, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.state import StateDirectory
from modelyard.testing import FakeEngine

MODEL = "m"


class Bench:
    """Everything that is started here ends with the block. `size` is how often to try; `rng` is the only source of
    chance, so that a seed repeats a run as far as processes can be repeated. `short` rows keep times generous."""

    def __init__(
        self,
        state: StateDirectory,
        *,
        seed: int,
        size: int,
        short: bool,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.state, self.seed, self.size, self.short = state, seed, size, short
        self.rng = random.Random(seed)
        self.progress = on_progress
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def gateway(self, *deployments: Deployment, args: tuple[str, ...] = ()) -> GatewayProcess:
        """A gateway that serves them and answers already; `args` goes to its command line. One for each bench."""
        gateway = GatewayProcess(self.state)
        self._stack.callback(gateway.close)
        gateway.publish(*deployments)
        await gateway.start(*args)
        return gateway

    async def engine(
        self, *, until: Literal["ready", "listening", "spawned"] = "ready", **knobs: str | int | float | bool | None
    ) -> FakeEngine:
        """A FakeEngine in a process of its own, on a unix socket unless `address` says otherwise."""
        return await self._stack.enter_async_context(FakeEngine(until=until, **knobs))

    async def connect(self, gateway: GatewayProcess) -> Connection:
        """A connection that is closed with the block at the latest."""
        connection = await gateway.connect()
        self._stack.callback(connection.close)
        return connection

    async def streams(
        self, gateway: GatewayProcess, body: dict[str, Any], count: int, within_s: float
    ) -> list[Connection]:
        """So many chats, all under way: bytes of each answer have come. Raises Lost, or TimeoutError."""
        streams = [await self.connect(gateway) for _ in range(count)]
        for stream in streams:
            stream.send(post("/v1/chat/completions", gateway.key, body))
        for stream in streams:
            await stream.body_has(1, within_s)
        return streams


def replica(engine: FakeEngine | str, name: str = "r0", *, launch: str = "l0", max_in_flight: int = 64) -> Replica:
    """`engine` is one that runs, or the address of anything else."""
    address = engine if isinstance(engine, str) else engine.address
    return Replica(name=name, launch=launch, address=address, max_in_flight=max_in_flight)


def deployment(*replicas: Replica, name: str = MODEL, **changes: Any) -> Deployment:
    """An open deployment of FakeEngines; `changes` are fields of it, or of its policy."""
    policy = Policy(**{field: changes.pop(field) for field in Policy.__struct_fields__ if field in changes})
    plain: dict[str, Any] = {"engine_model": "fake", "context_tokens": 8192, "created_at": 1, "open": True}
    return Deployment(name=name, replicas=replicas, policy=policy, **{**plain, **changes})


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
