"""What came of trying a row: counts, figures with their bounds, and the first of what went wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from modelyard.records.base import Record

SHOWN_FAILURES = 20
SHOWN_CHARACTERS = 400


class Figure(Record):
    """Something measured. Without a bound it is told and decides nothing."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """A value that is no number holds no bound."""
        is_low_enough = self.at_most is None or self.value <= self.at_most
        return is_low_enough and (self.at_least is None or self.value >= self.at_least)


class Outcome(Record):
    """`tried` is in the row's unit; `counts` says what was seen how often; `failed` are the first of the `failures`."""

    tried: int
    counts: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    figures: tuple[Figure, ...] = ()
    failures: int = 0
    failed: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.failures == 0 and all(figure.holds for figure in self.figures)


class Tally:
    """Where a row notes what it sees while it runs."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._tried = self._failures = 0
        self._failed: list[str] = []
        self._figures: list[Figure] = []

    def tried(self, count: int = 1) -> int:
        """Count what was tried; how many that makes."""
        self._tried += count
        return self._tried

    def saw(self, kind: str, count: int = 1) -> None:
        self.counts[kind] += count

    def wrong(self, what: str) -> None:
        """One thing that the claim excludes. All are counted, the first are kept."""
        self._failures += 1
        if len(self._failed) < SHOWN_FAILURES:
            self._failed.append(what[:SHOWN_CHARACTERS])

    def expect(self, holds: bool, what: str) -> None:
        """`what` says what is wrong where it does not hold."""
        if not holds:
            self.wrong(what)

    def figure(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        self._figures.append(Figure(name=name, value=value, unit=unit, at_most=at_most, at_least=at_least))

    def outcome(self) -> Outcome:
        return Outcome(
            tried=self._tried,
            counts=dict(sorted(self.counts.items())),
            figures=tuple(self._figures),
            failures=self._failures,
            failed=tuple(self._failed),
        )


def quantile(values: Iterable[float], q: float) -> float:
    """The least value that at least the share `q` of them does not exceed (nearest rank); NaN where there are none, and
    that holds no bound."""
    ordered = sorted(values)
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)] if ordered else math.nan
