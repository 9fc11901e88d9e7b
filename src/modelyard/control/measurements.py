"""What control shows at /metrics: the journal's projection, and the replicas as they are now."""

from __future__ import annotations

import asyncio
import contextlib

from modelyard.control.fleet import Fleet
from modelyard.observe.journal import BEGINNING, read_journal
from modelyard.observe.metrics import Metrics
from modelyard.state import StateDirectory

READ_EVERY_S = 1.0


class Measurements:
    """Follows the journal from its beginning: nothing that was counted can be lost with this process."""

    def __init__(self, state: StateDirectory, fleet: Fleet) -> None:
        self._state, self._fleet = state, fleet
        self._metrics = Metrics()
        self._shown: set[tuple[str, str]] = set()
        self._caught_up = asyncio.Event()

    async def follow_forever(self) -> None:
        checkpoint = BEGINNING
        while True:
            step = read_journal(self._state.journal, checkpoint)
            checkpoint = step.checkpoint
            self._metrics.count(step.records)
            self._metrics.count_unreadable(step.unreadable)
            if not step.more:
                self._caught_up.set()
            await asyncio.sleep(0 if step.more else READ_EVERY_S)

    async def caught_up(self, within_s: float) -> bool:
        """Whether the whole journal is counted: until then every counter would seem to have fallen."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._caught_up.wait(), within_s)
        return self._caught_up.is_set()

    def render(self) -> bytes:
        now: set[tuple[str, str]] = set()
        for deployment, running in self._fleet.running.items():
            for name, loop in running.replicas.items():
                now.add((deployment, name))
                metrics = loop.launch.metrics if loop.launch is not None else None
                self._metrics.set_replica(deployment, name, loop.state.phase, metrics)
        for deployment, name in self._shown - now:
            self._metrics.forget_replica(deployment, name)
        self._shown = now
        return self._metrics.render()
