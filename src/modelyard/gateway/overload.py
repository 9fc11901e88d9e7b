"""What a worker gives up, step by step, while it lacks memory, descriptors or time: decided here, purely.

The steps and the first two rows of thresholds are those of Envoy's overload manager for an edge (keep-alive ends first,
requests are refused next, connections last); nothing is killed, and each step is undone as soon as there is air."""

from __future__ import annotations

from dataclasses import dataclass, fields

# Levels: each includes those before it.
CALM = 0
NO_IDLE = 1
"""Connections are closed after an answer, and idle ones soon."""
REFUSING = 2
"""New requests are refused from their heads alone, before their bodies are read; those of a priority above 0 pass."""
CLOSED = 3
"""No connection is accepted: what comes waits in the kernel. Requests on open ones are refused whatever they are."""


@dataclass(frozen=True, slots=True)
class Readings:
    """`memory` and `descriptors` are used parts of what there is; `lag_s` is by how many seconds the event loop is
    late."""

    memory: float = 0.0
    descriptors: float = 0.0
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OverloadLimits:
    """From where each level holds, for levels 1 to 3. A level ends below nine tenths of where it begins."""

    memory: tuple[float, float, float] = (0.92, 0.95, 0.98)
    descriptors: tuple[float, float, float] = (0.92, 0.95, 0.98)
    lag_s: tuple[float, float, float] = (0.25, 0.5, 1.0)


OVERLOAD = OverloadLimits()
NO_READINGS = Readings()
RELEASE = 0.9


def ladder(level: int, readings: Readings, limits: OverloadLimits = OVERLOAD) -> int:
    """The level that follows `level`: up to the highest that any reading calls for, at once; down where none of them
    holds it any more."""
    pairs = [(getattr(readings, one.name), getattr(limits, one.name)) for one in fields(limits)]
    called_for = max(_reached(value, thresholds, 1.0) for value, thresholds in pairs)
    held = max(_reached(value, thresholds, RELEASE) for value, thresholds in pairs)
    return max(called_for, min(level, held))


def refuses(level: int, priority: int) -> bool:
    """Whether a new request of this priority is refused before its body is read."""
    return level >= CLOSED or (level == REFUSING and priority <= 0)


def _reached(value: float, thresholds: tuple[float, float, float], part: float) -> int:
    return sum(value >= part * threshold for threshold in thresholds)
