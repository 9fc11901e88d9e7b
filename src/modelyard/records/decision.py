"""Choosing a replica, with everything that the choice depended on, so that it can be replayed."""

from __future__ import annotations

from modelyard.records.base import Record


class Candidate(Record, array_like=True):
    """A replica as the chooser saw it. `in_flight` counts requests dispatched and not finished."""

    replica: str
    in_flight: int
    max_in_flight: int


class Decision(Record):
    """`replica` is None where every candidate was full; `tie_break` is the recorded randomness of the choice."""

    replica: str | None
    reason: str
    candidates: tuple[Candidate, ...]
    tie_break: int = 0
