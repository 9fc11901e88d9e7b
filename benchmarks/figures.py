"""The arithmetic of the benchmarks: percentiles, spreads over rounds, intervals of ratios, budgets and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the table the normal quantile is close enough.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

Samples = Mapping[str, Mapping[str, Sequence[float]]]  # metric -> subject -> one number per round


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    if not values or not 0 < percent <= 100:
        raise ValueError("percentile wants values and a percentage in (0, 100]")
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """What several rounds said."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio (geometric mean) with its two-sided 95 % confidence interval."""

    mean: float
    low: float
    high: float


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Student's t on the logarithms of paired ratios: pairs share their round's weather, ratios are symmetric there."""
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    if len(logs) < 2:
        raise ValueError("an interval wants at least two pairs")
    quantile = T_975[len(logs) - 2] if len(logs) - 2 < len(T_975) else 1.96
    half = quantile * stdev(logs) / math.sqrt(len(logs))
    centre = fmean(logs)
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half))


@dataclass(frozen=True, slots=True)
class Budget:
    """`metric` of a subject, compared per round with `against` (`over`: divided by it, `less`: minus it, `alone`: not
    compared), may not exceed `limit` (None: printed, not judged). Rounds are summed up by their median, their maximum,
    or the `upper` end of the ratio's 95 % interval."""

    row: str
    metric: str
    limit: float | None
    compare: Literal["over", "less", "alone"]
    against: str = ""
    rounds: Literal["median", "maximum", "upper"] = "median"

    def compared(self, samples: Samples, subject: str) -> list[float]:
        mine = samples[self.metric][subject]
        if self.compare == "alone":
            return list(mine)
        other = samples[self.metric][self.against]
        pairs = zip(mine, other, strict=True)
        return [a / b if self.compare == "over" else a - b for a, b in pairs]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`interval` is that of a ratio over at least two rounds."""

    budget: Budget
    subject: str
    spread: Spread
    judged: float
    interval: Interval | None = None

    @property
    def within(self) -> bool:
        return self.budget.limit is None or self.judged <= self.budget.limit


def judge(budget: Budget, samples: Samples, subject: str) -> Verdict:
    """Raises ValueError where the interval is to be judged and there are not two rounds."""
    compared = budget.compared(samples, subject)
    spread, interval = Spread.of(compared), None
    if budget.compare == "over" and (len(compared) > 1 or budget.rounds == "upper"):
        interval = ratio_interval(compared, [1.0] * len(compared))
    if budget.rounds == "upper":
        if interval is None:
            raise ValueError("only a ratio has an interval")
        return Verdict(budget, subject, spread, interval.high, interval)
    return Verdict(budget, subject, spread, spread.high if budget.rounds == "maximum" else spread.median, interval)


def rotated(subjects: Sequence[str], round_number: int) -> list[str]:
    """The order of one round: each subject comes first equally often, so that drift of the machine hits all alike."""
    start = round_number % len(subjects)
    return [*subjects[start:], *subjects[:start]]
