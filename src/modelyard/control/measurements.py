"""What control computes from the journal: metrics, usage, and what budgets are held against."""

from __future__ import annotations

import asyncio
import contextlib

from modelyard.clock import Clock
from modelyard.control.fleet import Fleet
from modelyard.observe.journal import read_journal
from modelyard.observe.metrics import Metrics
from modelyard.observe.usage import Usage
from modelyard.records.base import encode
from modelyard.state import StateDirectory, write_atomically

READ_EVERY_S = 1.0
# A gateway that starts reads what the journal holds beyond the last writing: this bounds how long that takes.
SPENDING_EVERY_S = 5.0


class Measurements:
    """Follows the journal from its beginning: nothing that was counted can be lost with this process."""

    def __init__(self, state: StateDirectory, fleet: Fleet, clock: Clock) -> None:
        self._state, self._fleet, self._clock = state, fleet, clock
        self._metrics = Metrics()
        self.usage = Usage()
        self._shown: set[tuple[str, str]] = set()
        self._caught_up = asyncio.Event()

    async def follow_forever(self) -> None:
        written_at, written = self._clock.monotonic(), self.usage.checkpoint
        while True:
            step = read_journal(self._state.journal, self.usage.checkpoint)
            self._metrics.count(step.records)
            self._metrics.count_unreadable(step.unreadable)
            self.usage.take(step)
            now = self._clock.monotonic()
            if self.usage.checkpoint != written and not step.more and now - written_at >= SPENDING_EVERY_S:
                self._write_spending()
                written_at, written = now, self.usage.checkpoint
            if not step.more:
                self._caught_up.set()
            await asyncio.sleep(0 if step.more else READ_EVERY_S)

    def _write_spending(self) -> None:
        # A full disk ends nothing: the next gateway reads more of the journal.
        with contextlib.suppress(OSError):
            write_atomically(self._state.spending, encode(self.usage.spending(self._clock.wall())))

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
