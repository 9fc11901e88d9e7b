"""What every test may ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modelyard.state import StateDirectory, open_state

Condition = Callable[[], object] | Callable[[], Awaitable[object]]


async def _eventually(condition: Condition, *, within_s: float = 20.0, what: str = "") -> object:
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {within_s} s: {what or condition}")
        await asyncio.sleep(0.01)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[object]]:
    """Wait for a condition (plain or async) to become true; the deadline only ends a hopeless wait."""
    return _eventually


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """A fresh state directory."""
    return open_state(tmp_path / "state")
