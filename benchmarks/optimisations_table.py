"""From measured halves to the table: what on does to off, each ratio with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.figures import Interval, ratio_interval
from benchmarks.gateway_table import aligned, number
from benchmarks.optimisations_cases import CASES, EngineName, NotOffered, Optimisation


@dataclass(frozen=True, slots=True)
class Half:
    """One engine under one half of a pair. `first_token_s` is the median over its requests, `longest_gap_s` the worst
    of all, `memory_bytes` the most that was resident."""

    tokens_per_s: float
    first_token_s: float
    longest_gap_s: float
    memory_bytes: float
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Both halves got the same prompts."""

    on: Half
    off: Half


@dataclass(frozen=True, slots=True)
class Metric:
    label: str
    read: Callable[[Half], float]
    unit: float = 1.0


METRICS = (
    Metric("tokens/s", lambda half: half.tokens_per_s),
    Metric("first token [ms]", lambda half: half.first_token_s, 1e3),
    Metric("longest gap [ms]", lambda half: half.longest_gap_s, 1e3),
    Metric("memory [MiB]", lambda half: half.memory_bytes, 1 / (1 << 20)),
)

# What stands in a cell: pairs, or why there are none.
Found = Mapping[tuple[Optimisation, EngineName], Sequence[Pair] | str]


def ratio(pairs: Sequence[Pair], metric: Metric) -> Interval:
    """On divided by off, within each pair."""
    return ratio_interval([metric.read(pair.on) for pair in pairs], [metric.read(pair.off) for pair in pairs])


def same_answers(pairs: Sequence[Pair]) -> float:
    """The share of prompts, asked at temperature 0, that both variants answered with the same text."""
    both = [a == b for pair in pairs for a, b in zip(pair.on.answers, pair.off.answers, strict=True)]
    return sum(both) / len(both)


def table(found: Found, optimisations: Sequence[Optimisation], engines: Sequence[EngineName]) -> str:
    """One line an optimisation and engine: off -> on and their ratio with its 95 % interval; reasons below it."""
    lines = [("optimisation", "engine", *(metric.label for metric in METRICS), "same answers")]
    notes: list[str] = []
    for optimisation in optimisations:
        for engine in engines:
            what = found.get((optimisation, engine), "not measured")
            if isinstance(what, str):
                notes.append(f"{optimisation}, {engine}: {what}")
                cells = [f"[{len(notes)}]", *("-" for _ in METRICS)]
            else:
                cells = [*(_cell(what, metric) for metric in METRICS), f"{same_answers(what):.0%}"]
            lines.append((optimisation, engine, *cells))
    return "\n".join([aligned(lines), *(f"[{place}] {note}" for place, note in enumerate(notes, 1))])


def _cell(pairs: Sequence[Pair], metric: Metric) -> str:
    off, on = (median(metric.read(half) for half in halves) * metric.unit for halves in _halves(pairs))
    interval = ratio(pairs, metric)
    return f"{number(off)} -> {number(on)}: x {interval.mean:.2f} ({interval.low:.2f}-{interval.high:.2f})"


def _halves(pairs: Sequence[Pair]) -> tuple[list[Half], list[Half]]:
    return [pair.off for pair in pairs], [pair.on for pair in pairs]


def not_offered(optimisation: Optimisation, engine: EngineName) -> str | None:
    """The words for a cell that the engine cannot fill, with where they come from."""
    case = CASES[engine][optimisation]
    return f"not offered: {case.reason} ({case.source})" if isinstance(case, NotOffered) else None
