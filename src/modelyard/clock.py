"""Time and randomness as values that are passed in, so that decisions can be replayed and tests need not wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall()`: Unix seconds for records; `monotonic()`: seconds for deadlines, never jumps; `jitter()`: in [0, 1)."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = field(default_factory=lambda: random.Random().random)


SYSTEM = Clock()
