"""`modelyard usage`: who used what, and what it cost."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from modelyard.cli.admin import Admin, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, print_table
from modelyard.cli.visible import visible
from modelyard.errors import UsageError
from modelyard.observe.usage import UsageRow

BAR_CELLS = 20
# An eighth of a cell each.
_PARTS = " ▏▎▍▌▋▊▉█"


class By(StrEnum):
    key = "key"
    team = "team"
    deployment = "deployment"
    day = "day"


def usage(
    by: Annotated[By, typer.Option(help="What each row is.")] = By.key,
    since: Annotated[
        str | None, typer.Option(help="From this day (UTC) on: 2026-11-25, or 7d for the last seven days.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to this day (UTC), it included.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json: Json = False,
) -> None:
    """Requests, tokens and cost by key, team, deployment or day, as the journal has them.

    Example: modelyard usage --by team --since 30d --csv > usage.csv
    """
    if csv and json:
        raise UsageError("one form at a time", hint="give --csv or --json")
    days = f"{_query('since', since)}{_query('until', until)}"
    admin = Admin(state_directory())
    if csv:
        print(admin.get(f"/usage?by={by.value}{days}&format=csv", bytes).decode(), end="")
        return
    rows = admin.get(f"/usage?by={by.value}{days}", list[UsageRow])
    if json:
        print_json(rows)
    elif rows:
        print_table(_table(by, rows))
        if estimated := sum(row.estimated for row in rows):
            OUT.print(f"{estimated:,} requests counted by estimate: their engine never stated usage", style="dim")
    else:
        OUT.print("nothing was used in that time", style="dim")


def _query(name: str, day: str | None) -> str:
    return "" if day is None else f"&{name}={_day(day).isoformat()}"


def _day(text: str) -> date:
    """A date, or so many days ago, today counted. Raises UsageError."""
    if text.endswith("d") and text[:-1].isdigit() and 1 <= int(text[:-1]) <= 36_500:
        return datetime.now(UTC).date() - timedelta(days=int(text[:-1]) - 1)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no day", hint="write 2026-11-25, or 7d for the last seven days") from None


def _table(by: By, rows: list[UsageRow]) -> Table:
    """Bars are of cost where anything costs, else of tokens."""
    table = Table(box=None, pad_edge=False)
    table.add_column(by.value)
    for name in ("requests", "prompt", "cached", "answer", "cost"):
        table.add_column(name, justify="right")
    table.add_column("")
    has_cost = any(row.cost_pico for row in rows)
    sizes = [row.cost_pico if has_cost else row.prompt_tokens + row.completion_tokens for row in rows]
    most = max(sizes, default=0)
    for row, size in zip(rows, sizes, strict=True):
        tokens = (f"{count:,}" for count in (row.prompt_tokens, row.cached_tokens, row.completion_tokens))
        name = visible(row.name or row.id).replace("[", r"\[")
        table.add_row(name, f"{row.requests:,}", *tokens, row.cost, bar(size, most))
    return table


def bar(size: int, most: int) -> str:
    """`size` as a part of `most`, to an eighth of a cell."""
    eighths = size * BAR_CELLS * 8 // most if most else 0
    return _PARTS[8] * (eighths // 8) + (_PARTS[eighths % 8] if eighths % 8 else "")
