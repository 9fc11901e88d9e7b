"""`guarantees.md`: every row with its counts, its verdict, and how old and of which source that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modelyard.selftest.outcome import Figure
from modelyard.selftest.result import Result
from modelyard.selftest.row import Row
from modelyard.selftest.sources import source_sha256

HEAD = """# Guarantees

What we promise about failures and overload, tried by `modelyard selftest` with real processes on loopback, and what
came of it. `modelyard selftest --list` says what there is, `--rows 10,22` tries some of it on your installation, and
`--write FILE` makes this page from the results in the state directory. Nothing here is written by hand.

A row is green where it was tried as often as it says, nothing excluded by its claim was seen, and every bound held.
"short form" is a row that was only tried a few times. The source is a hash over all code that the row's result depends
on. "Code changed since" says that some of it is not any more what the result was taken from: the row was tried as it
says, on that day, with that source, and not again with what stands here now."""


def document(rows: Sequence[Row], result_of: Callable[[str], Result | None]) -> str:
    """A table of all rows, then each with everything that is known of it."""
    results = {row.key: result_of(row.key) for row in rows}
    table = ["| row | what is done | tried | verdict | source | date |", "|---|---|---|---|---|---|"]
    table += [_line(row, results[row.key]) for row in rows]
    machines = sorted({result.machine for result in results.values() if result is not None})
    parts = [HEAD, "\n".join(table)]
    if machines:
        parts.append("Machine: " + "; ".join(machines) + ".")
    parts += [_section(row, results[row.key]) for row in rows]
    return "\n\n".join(parts) + "\n"


def _line(row: Row, result: Result | None) -> str:
    if result is None:
        return f"| {row.key} | {_cell(row.name)} | 0 of {row.full:,} {row.unit} | not run | | |"
    form = ", short form" if result.short else ""
    tried = f"{result.outcome.tried:,} {row.unit}{form}"
    verdict = result.verdict + _changed(row, result)
    return f"| {row.key} | {_cell(row.name)} | {tried} | {verdict} | {_source(result)} | {day(result)} |"


def _section(row: Row, result: Result | None) -> str:
    lines = [f"## {row.key}: {row.name}", "", row.claim, ""]
    if result is None:
        return "\n".join([*lines, "Not run."])
    form = " in the short form" if result.short else ""
    lines += [
        f"{result.verdict.capitalize()}{form}: {result.outcome.tried:,} {row.unit} in {result.duration_s:,.0f} s on "
        f"{day(result)}, seed {result.seed}, Modelyard {result.modelyard}, source {_source(result)}"
        f"{_changed(row, result)}.",
        f"`{result.command}`",
    ]
    if result.reason:
        lines += ["", f"{_cell(result.reason)}."]
    if result.outcome.counts:
        lines += ["", "Seen: " + ", ".join(f"{count:,} {name}" for name, count in result.outcome.counts.items()) + "."]
    if result.outcome.figures:
        lines += ["", "| figure | measured | bound |", "|---|---|---|"]
        lines += [f"| {_cell(one.name)} | {_value(one)} | {bound(one)} |" for one in result.outcome.figures]
    if result.outcome.failures:
        lines += ["", f"{result.outcome.failures:,} failures, among them:", ""]
        lines += [f"* {_cell(text)}" for text in result.outcome.failed]
    return "\n".join(lines)


def day(result: Result) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(result.at))


def in_words(result: Result) -> str:
    """Counts and figures in one line, for the terminal."""
    counts = (f"{count} {name}" for name, count in result.outcome.counts.items())
    figures = (f"{one.name} {_value(one)}{'' if one.holds else f' ({bound(one)})'}" for one in result.outcome.figures)
    return "; ".join(text for text in (", ".join(counts), ", ".join(figures), result.reason) if text)


def bound(figure: Figure) -> str:
    bounds = ((figure.at_least, "at least"), (figure.at_most, "at most"))
    return ", ".join(f"{words} {value:,.4g} {figure.unit}".rstrip() for value, words in bounds if value is not None)


def _value(figure: Figure) -> str:
    return f"{figure.value:,.4g} {figure.unit}".rstrip()


def _source(result: Result) -> str:
    return f"`{result.source_sha256[:12]}`"


def _changed(row: Row, result: Result) -> str:
    return "" if source_sha256(row) == result.source_sha256 else ", code changed since"


def _cell(text: str) -> str:
    """What engines and requests say must not become markup of ours."""
    flat = " ".join(text.split())
    for character in ("\\", "|", "<", "`", "*", "_", "["):
        flat = flat.replace(character, f"\\{character}")
    return flat
