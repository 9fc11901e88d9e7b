"""Choosing a replica, with everything that the choice depended on, so that it can be replayed."""

from __future__ import annotations

from typing import Literal

from modelyard.records.base import Record


class Candidate(Record, array_like=True):
    """A replica as the chooser saw it. `in_flight` counts requests dispatched and not finished. `barred` says why it
    gets none: it failed this request, took no connection a moment ago, or its breaker is open; `badness` compares those
    where nobody is left."""

    replica: str
    in_flight: int
    max_in_flight: int
    barred: Literal["", "excluded", "refusing", "ejected"] = ""
    badness: int = 0


class Decision(Record):
    """`replica` is None where every candidate was full; `tie_break` is the recorded randomness of the choice. `panic`
    where nobody sound was left and the least bad was taken."""

    replica: str | None
    reason: str
    candidates: tuple[Candidate, ...]
    tie_break: int = 0
    panic: bool = False
