"""What a yard that serves and is asked nothing holds in memory: its own process, control and the gateway."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from benchmarks import processes
from benchmarks.kills_yard import KilledYard, fake_yard

SETTLE_S = 5.0


def yard_rss_bytes() -> int:
    """With one FakeEngine, which is left out, as is its shim. Raises CannotMeasure where it does not serve."""
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder, fake_yard(Path(folder) / "y", 1, {}) as yard:
        return asyncio.run(_rss_bytes(yard))


async def _rss_bytes(yard: KilledYard) -> int:
    await yard.ready()
    await asyncio.sleep(SETTLE_S)
    return processes.rss_bytes([yard.pid, yard.child("control").pid, yard.child("gateway").pid])
