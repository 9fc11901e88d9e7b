"""When a first token is late, and how many streams may be asked for twice because of that: one for each deployment.

A stream is late when it takes longer than 95 of 100 did lately (Dean and Barroso 2013, "The Tail at Scale", hedged
requests), or than all but the share that may be hedged where that is less: a share of 2 % would be gone before the
longest waits, which are worth it, if 5 % were let at it. What is remembered are the times of those that may be hedged,
whichever of two sendings was first. That does not shift the percentile: a hedge shortens only waits that are longer
than it already. State without time or I/O."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from math import ceil

from modelyard.gateway.budget import Budget

PERCENTILE = 0.95
# First-token times that are remembered, and how many there must be before anything is late.
REMEMBERED = 256
VOLUME = 20
# Below this, what is late is rather our own loop or the kernel's scheduler than the engine.
FLOOR_S = 0.05


@dataclass(slots=True)
class Hedging:
    """`budget` is what may be sent yet."""

    budget: Budget = field(default_factory=lambda: Budget(0.0))
    _recent: deque[float] = field(default_factory=deque[float])
    _sorted: list[float] = field(default_factory=list[float])

    def learn(self, first_token_s: float) -> None:
        """A stream's first token came after so long."""
        recent, in_order = self._recent, self._sorted
        if len(recent) == REMEMBERED:
            del in_order[bisect_left(in_order, recent.popleft())]
        recent.append(first_token_s)
        insort(in_order, first_token_s)

    def late_s(self, share: float) -> float | None:
        """How long a first token may take where `share` of the requests may be hedged; None while too few were seen.
        By the nearest rank: the least time that so many of those seen do not exceed."""
        in_order = self._sorted
        if len(in_order) < VOLUME:
            return None
        rank = ceil(max(PERCENTILE, 1.0 - share) * len(in_order))
        return max(FLOOR_S, in_order[rank - 1])

    def take(self, requests: int, share: float) -> bool:
        """Whether one more hedge is within `share` of the `requests` that have come so far; counts it."""
        filled = self.budget.filled(requests, 0.0, share, 0.0)
        left = filled.spent()
        self.budget = left or filled
        return left is not None
