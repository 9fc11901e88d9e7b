"""Work that is done a while later, unless it is called off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]


def later(delay_s: float, work: Callable[[], None]) -> Timer:
    """On the running loop."""
    return asyncio.get_running_loop().call_later(delay_s, work)
