"""A conformance result as one Markdown document that can be attached to an issue: nothing in it points elsewhere."""

from __future__ import annotations

import time

from modelyard.spec.sizes import show
from modelyard.verify.conformance.record import Conformance, Outcome, Verdict

MARKS: dict[Verdict, str] = {"green": "✓", "red": "✗", "not claimed": "-", "not asked": "?"}


def document(result: Conformance) -> str:
    """Who was tried where, every row, and for what is red the advice and the log's last lines."""
    parts = [
        f"# Conformance of {result.engine} {result.version}: {'green' if result.green else 'red'}",
        in_short(result),
        _table(("", "value"), _facts(result)),
        "## Rows",
        _table(("", "row", "claim", "predicted", "measured", "time"), [_row(one) for one in result.rows]),
    ]
    if result.red:
        parts += ["## What is red", *(_explained(one) for one in result.red)]
    parts += ["## Effective configuration", _table(("setting", "value"), sorted(result.effective.items()))]
    if result.tail:
        parts += ["## The log's last lines", _fenced(result.tail)]
    return "\n\n".join(parts) + "\n"


def in_short(result: Conformance) -> str:
    """How many rows came out how, in a line."""
    counts = ((result.count(verdict), verdict) for verdict in MARKS)
    told = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    return f"{told} of {len(result.rows)} rows in {result.duration_s:.0f} s"


def _facts(result: Conformance) -> list[tuple[str, str]]:
    machine = result.machine
    return [
        ("engine", f"{result.engine} {result.version}"),
        ("installed packages", f"sha256 {result.lock_sha256}"),
        ("model", f"{result.model}, sha256 {result.artifact_sha256}"),
        ("machine", f"{machine.cpu_model}, {machine.cores} cores, {show(machine.memory_bytes)}, {machine.arch}"),
        ("instruction sets", ", ".join(machine.isa) or "none known"),
        ("Modelyard", result.modelyard),
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(result.at))),
        ("command", f"modelyard engines conformance {result.engine}"),
    ]


def _row(outcome: Outcome) -> tuple[str, ...]:
    mark = MARKS[outcome.verdict]
    measured = outcome.measured if outcome.verdict in ("green", "red") else f"{outcome.verdict}: {outcome.measured}"
    return mark, outcome.row, outcome.claim, outcome.predicted, measured, f"{outcome.duration_s:.1f} s"


def _explained(outcome: Outcome) -> str:
    return (
        f"**{outcome.row}**: not proved that {_cell(outcome.claim)}\n"
        f"- green needs: {_cell(outcome.bound)}\n"
        f"- predicted: {_cell(outcome.predicted)}\n"
        f"- measured: {_cell(outcome.measured)}\n"
        f"- try: {_cell(outcome.advice)}"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]] | list[tuple[str, object]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(str(cell)) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """What engines and models say must not become markup of ours."""
    flat = " ".join(text.split())
    for character in ("\\", "|", "<", "`", "*", "_", "["):
        flat = flat.replace(character, f"\\{character}")
    return flat


def _fenced(lines: tuple[str, ...]) -> str:
    """Longer than any fence in the text itself."""
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return "\n".join((f"{fence}text", *lines, fence))
