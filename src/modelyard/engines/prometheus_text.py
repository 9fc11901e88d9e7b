"""The Prometheus text format as engines write it: samples with their labels. What is absent stays absent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)\s*(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*", re.ASCII)
_LABEL = re.compile(r'\s*(?P<name>[a-zA-Z_]\w*)\s*=\s*"(?P<value>(?:[^"\\]|\\.)*)"\s*(?:,|$)', re.ASCII)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict[str, str])


def parse(text: str) -> tuple[Sample, ...]:
    """Every sample of `text` in its order. Comments, NaN (no value) and lines that are not samples, such as the cut-off
    end of a page, are left out: a metrics page never ends a probe."""
    return tuple(sample for line in text.splitlines() if (sample := _sample(line.strip())) is not None)


def total(samples: Iterable[Sample], name: str, **labels: str) -> float | None:
    """The sum over the series called `name` that carry at least these labels; None where there is none."""
    values = [sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]
    return math.fsum(values) if values else None


def _sample(line: str) -> Sample | None:
    if not line or line.startswith("#") or (match := _SAMPLE.fullmatch(line)) is None:
        return None
    labels = _labels(match["labels"] or "")
    try:
        value = float(match["value"])
    except ValueError:
        return None
    return None if labels is None or math.isnan(value) else Sample(match["name"], value, labels)


def _labels(text: str) -> dict[str, str] | None:
    """None where the text between the braces is not a list of labels."""
    found, at = dict[str, str](), 0
    while text[at:].strip():
        if (match := _LABEL.match(text, at)) is None:
            return None
        found[match["name"]] = _ESCAPED.sub(_unescaped, match["value"])
        at = match.end()
    return found


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
