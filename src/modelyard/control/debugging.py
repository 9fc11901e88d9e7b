"""Debug windows: opened for a time and a reason, noted before they open, and what they left removed after a while."""

from __future__ import annotations

import asyncio
import contextlib

from modelyard.clock import Clock
from modelyard.control.audit_log import AuditLog
from modelyard.control.publisher import Publisher
from modelyard.errors import ModelyardError
from modelyard.state import StateDirectory

LONGEST_S = 86_400.0
# After the last request that was written: time to read it, then it is gone.
KEPT_S = 86_400.0
LOOK_EVERY_S = 60.0


class DebugWindows:
    """Owned by control. A window is a time in the topology: it ends by itself, also while no control lives."""

    def __init__(self, state: StateDirectory, publisher: Publisher, audit: AuditLog, clock: Clock) -> None:
        self._folder = state.debug
        self._publisher, self._audit, self._clock = publisher, audit, clock

    def open(self, deployment: str, for_s: float, reason: str, by: str) -> float:
        """Until when it is open: Unix seconds. Nothing opens that could not be noted (ModelyardError)."""
        until = self._clock.wall() + for_s
        self._audit.note(by, "debug.open", deployment, reason=reason, until=f"{until:.0f}")
        self._publisher.debug(deployment, until)
        return until

    def close(self, deployment: str, by: str) -> None:
        """At once; noted after it, because closing must not fail for want of a note."""
        self._publisher.debug(deployment, 0.0)
        self._audit.note(by, "debug.close", deployment)

    def until(self, deployment: str) -> float:
        """0 where it is closed."""
        until = self._publisher.debug_until(deployment)
        return until if until > self._clock.wall() else 0.0

    def sweep(self) -> None:
        """Remove files that were last written `KEPT_S` ago."""
        for path in self._folder.glob("*.ndjson"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime + KEPT_S < self._clock.wall():
                    path.unlink()
                    self._audit.note("control", "debug.removed", path.name)

    async def sweep_forever(self) -> None:
        while True:
            try:
                self.sweep()
            except (ModelyardError, OSError) as error:
                # A full disk: what is due is removed at the next look, and control goes on.
                print(f"error: debug windows: {error}", flush=True)
            await asyncio.sleep(LOOK_EVERY_S)
