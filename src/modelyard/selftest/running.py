"""Trying rows one after the other; each has a bench, and an end."""

from __future__ import annotations

import asyncio
import platform
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop

from modelyard import __version__
from modelyard.hardware.machine import probe
from modelyard.selftest.bench import Bench
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.result import Result, Verdict
from modelyard.selftest.row import CannotRun, Row
from modelyard.selftest.sources import source_sha256
from modelyard.state import open_state


def run(row: Row, *, seed: int, short: bool, command: str, on_progress: Callable[[int], None]) -> Result:
    """Try a row on this machine. A row that breaks, or does not end, is red."""
    size, source, began = row.short if short else row.full, source_sha256(row), time.monotonic()
    at, reason = time.time(), ""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(_tried(row, seed=seed, size=size, short=short, on_progress=on_progress))
        verdict: Verdict = "green" if outcome.holds and outcome.tried >= size else "red"
        if outcome.tried < size:
            reason = f"tried {outcome.tried} of {size} {row.unit}"
    except CannotRun as missing:
        outcome, verdict, reason = Outcome(tried=0), "not run", f"{missing.message}; {missing.hint}".rstrip("; ")
    return Result(
        row=row.key,
        name=row.name,
        claim=row.claim,
        unit=row.unit,
        size=size,
        short=short,
        verdict=verdict,
        outcome=outcome,
        source_sha256=source,
        seed=seed,
        machine=machine(),
        modelyard=__version__,
        at=at,
        duration_s=time.monotonic() - began,
        command=command,
        reason=reason,
    )


async def _tried(row: Row, *, seed: int, size: int, short: bool, on_progress: Callable[[int], None]) -> Outcome:
    broken = Tally()
    # A short name: unix sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="ms-", ignore_cleanup_errors=True) as folder:
        state = open_state(Path(folder) / "s")
        try:
            async with (
                asyncio.timeout(row.limit_s),
                Bench(state, seed=seed, size=size, short=short, on_progress=on_progress) as bench,
            ):
                return await row.run(bench)
        except TimeoutError:
            broken.wrong(f"no end within {row.limit_s:g} s, or a deadline that the row did not expect")
            broken.wrong(traceback.format_exc()[-400:])
        except Exception as error:
            if isinstance(alone := _alone(error), CannotRun):
                raise alone from None
            broken.wrong(f"the row itself broke: {traceback.format_exc()[-400:]}")
    return broken.outcome()


def _alone(error: Exception) -> Exception:
    """The one error that task groups have wrapped, however often."""
    if not isinstance(error, ExceptionGroup):
        return error
    group = cast("ExceptionGroup[Exception]", error)
    first, *others = group.exceptions
    return group if others else _alone(first)


def machine() -> str:
    """In words, for people who compare results."""
    found = probe(accelerators=())
    memory_gib = found.memory_bytes / 2**30
    software = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{found.cores} cores of {found.cpu_model}, {memory_gib:.0f} GiB, {software}"
