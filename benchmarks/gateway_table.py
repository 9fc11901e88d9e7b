"""The two tables of the gateway benchmark: every subject's medians, then what is said about the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.figures import Budget, Samples, Verdict
from benchmarks.gateway_rows import ROWS, Row

Missing = Mapping[tuple[str, str], str]  # (group, subject) -> why it was not measured


def medians(samples: Samples, groups: Sequence[str], names: Sequence[str], missing: Missing) -> str:
    """One line a row, one column a subject. Where a subject was not measured, a number in brackets leads to why."""
    notes: list[str] = []
    lines = [("median of the rounds", *names)]
    for group in groups:
        for row in ROWS[group]:
            cells: list[str] = []
            for name in names:
                if reason := missing.get((group, name)):
                    note = f"{name}: {reason}"
                    notes += [note] if note not in notes else []
                    cells.append(f"[{notes.index(note) + 1}]")
                else:
                    cells.append(_cell(samples, row, name))
            lines.append((row.label, *cells))
    return "\n".join([aligned(lines), *(f"[{number}] {note}" for number, note in enumerate(notes, 1))])


def _cell(samples: Samples, row: Row, name: str) -> str:
    values = samples.get(row.metric, {}).get(name)
    if not values or (row.over_direct and name == "direct"):
        return "-"
    if row.over_direct:
        values = [mine - bare for mine, bare in zip(values, samples[row.metric]["direct"], strict=True)]
    return number(median(values))


def number(value: float) -> str:
    """Three significant digits, thousands in groups."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def judgements(found: Sequence[Verdict], unjudged: Mapping[Budget, str]) -> str:
    """One line for each comparison of the gateway: the ratio with its interval, the budget, and whether it holds."""
    lines = [("the gateway", "beside", "measured", "budget", "")]
    for verdict in found:
        budget = verdict.budget
        word = "" if budget.limit is None else ("pass" if verdict.within else "FAIL")
        lines.append((budget.row, _beside(budget), _measured(verdict), _limit(budget), word))
    for budget, reason in unjudged.items():
        lines.append((budget.row, _beside(budget), "not measured", _limit(budget), f"not judged: {reason}"))
    return aligned(lines)


def _beside(budget: Budget) -> str:
    return {"over": "/ ", "less": "- ", "alone": ""}[budget.compare] + budget.against


def _measured(verdict: Verdict) -> str:
    spread, interval = verdict.spread, verdict.interval
    if interval is not None:
        return f"{interval.mean:.3g} (95 %: {interval.low:.3g}-{interval.high:.3g})"
    return f"{spread.median:.3g} (rounds: {spread.low:.3g}-{spread.high:.3g})"


def _limit(budget: Budget) -> str:
    if budget.limit is None:
        return ""
    sign = "<" if budget.rounds == "upper" else "<="
    return f"{_JUDGED[budget.rounds]} {sign} {budget.limit:.3g}"


_JUDGED = {"median": "median", "maximum": "maximum", "upper": "upper end"}


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, without trailing spaces."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
