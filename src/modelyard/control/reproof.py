"""Proving again what serves: on request, and before evidence expires.

Some claims hold only for a replica that nobody else asks (equal answers at temperature 0 need a batch of one). So its
requests wait in the gateway meanwhile, a few seconds, instead of making a sound replica look wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Literal

from modelyard.control.publisher import Publisher
from modelyard.control.replica_loop import UNROUTED_FOR_SURE_S, Launch, ReplicaLoop
from modelyard.errors import NotRunning
from modelyard.node.probes import open_session, read_engine_metrics
from modelyard.records.evidence import Evidence

# Requests that run are not cut: one that takes longer than this puts the proof off. What waits meanwhile waits for this
# and the checks together, well within the gateway's queue timeout.
QUIET_WITHIN_S = 10.0
QUIET_LOOK_EVERY_S = 0.1
RENEW_BEFORE_S = 24 * 3600.0


@asynccontextmanager
async def alone(publisher: Publisher, loop: ReplicaLoop, launch: Launch) -> AsyncGenerator[None]:
    """Nobody else asks the replica inside this block. Raises NotRunning, with nothing changed, where it stays busy."""
    deployment, replica = loop.wanted.name, loop.plan.name
    publisher.hold(deployment, replica, held=True)
    try:
        await asyncio.sleep(UNROUTED_FOR_SURE_S)
        try:
            async with asyncio.timeout(QUIET_WITHIN_S):
                await _until_quiet(loop, launch)
        except TimeoutError:
            raise NotRunning(
                f"{replica} stayed busy for {QUIET_WITHIN_S:g} s: it cannot be asked alone",
                hint="try at a quieter time",
            ) from None
        yield
    finally:
        publisher.hold(deployment, replica, held=False)


async def _until_quiet(loop: ReplicaLoop, launch: Launch) -> None:
    async with open_session(launch.spec) as session:
        while True:
            metrics = await read_engine_metrics(session, launch.spec, loop.engine.read_metrics)
            if metrics is not None and not metrics.running and not metrics.waiting:
                return
            await asyncio.sleep(QUIET_LOOK_EVERY_S)


def due(evidence: Iterable[Evidence], now: float) -> Literal["no", "soon", "expired"]:
    """Whether evidence must be renewed at `now` (Unix seconds): the first check to expire decides."""
    first = min((one.expires_at for one in evidence), default=float("inf"))
    if now >= first:
        return "expired"
    return "soon" if now >= first - RENEW_BEFORE_S else "no"
