"""Averages and spans that a door keeps of its queue; no clock of their own."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.gateway.limits import DOOR

# Seats given back that a mean looks over, about.
_MEMORY = 32


@dataclass(slots=True)
class Mean:
    """An exponentially weighted mean; of the first samples a plain one. 0 before any."""

    value: float = 0.0
    samples: int = 0

    def add(self, sample: float) -> None:
        self.samples = min(_MEMORY, self.samples + 1)
        self.value += (sample - self.value) / self.samples


@dataclass(slots=True)
class Standing:
    """For how long somebody has waited without an end. Once that was long, only a queue that stays empty for as long
    again counts as an end: an overload that lets the queue run dry for a moment is still the same overload."""

    since: float | None = None
    seen: float = 0.0

    def look(self, waiting: bool, now: float) -> None:
        """To be called often, `waiting` telling whether somebody does."""
        if self.since is not None and not waiting:
            was_long = self.seen - self.since >= DOOR.standing_s
            if not was_long or now - self.seen >= DOOR.standing_s:
                self.since = None
        elif waiting:
            self.since = now if self.since is None else self.since
            self.seen = now

    def lasted_s(self, now: float) -> float:
        return now - self.since if self.since is not None else 0.0
