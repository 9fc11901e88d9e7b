"""`modelyard keys`: who may call, and how much."""

from __future__ import annotations

import re
import time
from typing import Annotated
from urllib.parse import quote

import typer
from rich.table import Table

from modelyard.cli import bounding
from modelyard.cli.admin import Admin, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.control.key_log import ListedKey
from modelyard.errors import UsageError
from modelyard.observe.usage import UsageRow, show_day
from modelyard.records.base import Record
from modelyard.records.money import show_pico
from modelyard.records.spending import DAY_S, period_of

app = typer.Typer(help="Who may call: keys are made, shown once, bounded, rotated, revoked.", no_args_is_help=True)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


class MadeKey(Record, kw_only=True):
    """The one time that `key` is seen."""

    id: str
    name: str
    key: str


@app.command()
@bounding.bounded
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    days: Annotated[float | None, typer.Option(help="It ends by itself after this many days.")] = None,
    team: Annotated[str | None, typer.Option(help="The team that it belongs to: its bounds hold too.")] = None,
    parent: Annotated[str | None, typer.Option(help="The id of a key that it never reaches beyond.")] = None,
    *,
    bounds: dict[str, object],
    json: Json = False,
) -> None:
    """Make a key and show it, this once; only its hash is kept.

    Example: modelyard keys create ci --team research --requests-per-minute 60 --budget-per-day 5.00
    """
    if days is not None:
        _check_days(days)
    if team is not None and parent is not None:
        raise UsageError("a key hangs below one team or one key", hint="give --team or --parent")
    ttl_s = None if days is None else days * DAY_S
    made = Admin(state_directory()).post(
        "/keys", MadeKey, {**bounds, "name": name, "ttl_s": ttl_s, "parent": team or parent}
    )
    if json:
        print_json(made)
    else:
        say(made.key)


@app.command("list")
def list_keys(json: Json = False) -> None:
    """Every key, without its secret."""
    found = Admin(state_directory()).get("/keys", list[ListedKey])
    if json:
        print_json(found)
        return
    table = Table("id", "name", "state", "for", "below", "bounds", box=None, pad_edge=False)
    # Each `modelyard chat` made one for itself and took it back.
    for key in (key for key in found if key.revoked_at is None or not key.name.startswith("chat ")):
        below = ", ".join(key.line) or "-"
        table.add_row(key.id, key.name, state_of(key), bounding.scopes_text(key), below, bounding.bounds_text(key))
    OUT.print(table)


@app.command()
def show(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows, or the name of a team.")],
    json: Json = False,
) -> None:
    """One key or team: what it may do, and what it has used today and in this month."""
    admin = Admin(state_directory())
    key = admin.get(f"/keys/{quote(key_id, safe='')}", ListedKey)
    today, month = (_used(admin, key, since) for since in _starts(time.time()))
    if json:
        print_json({"key": key, "today": today, "month": month})
        return
    say(f"{'team' if key.is_team else 'key'} {key.name}  ({key.id}, {state_of(key)})")
    say(f"  below      {', '.join(key.line) or 'nothing'}")
    say(f"  reaches    {bounding.scopes_text(key)}")
    say(f"  bounds     {bounding.bounds_text(key)}")
    budgets = key.budgets
    say(f"  today      {_spent(today, budgets.tokens_per_day, budgets.pico_per_day)}")
    say(f"  month      {_spent(month, budgets.tokens_per_month, budgets.pico_per_month)}")


@app.command()
@bounding.bounded
def change(
    key_id: Annotated[str, typer.Argument(metavar="NAME|ID", help="A key or a team, by its name or its id.")],
    days: Annotated[float | None, typer.Option(help="It ends by itself this many days from now.")] = None,
    without: Annotated[
        list[bounding.Removable] | None,
        typer.Option(metavar="BOUND", help="Take this bound away, named like its option. Repeatable."),
    ] = None,
    *,
    bounds: dict[str, object],
    json: Json = False,
) -> None:
    """Give a key or a team other bounds; what is not named stays. The gateway knows within a second.

    Example: modelyard keys change ci --requests-per-minute 120 --without budget-per-day
    """
    if days is not None:
        _check_days(days)
        bounds["expires_at"] = time.time() + days * DAY_S
    for removed in without or ():
        if bounds.setdefault(removed.field, None) is not None:
            raise UsageError(f"--{removed.value} is given and taken away", hint="leave one of them out")
    if not bounds:
        raise UsageError("nothing is to be changed", hint="for example --requests-per-minute 60, or --without days")
    key = Admin(state_directory()).patch(f"/keys/{quote(key_id, safe='')}", ListedKey, bounds)
    if json:
        print_json(key)
    else:
        say(f"{'team' if key.is_team else 'key'} {key.name} ({key.id}): {bounding.bounds_text(key)}")


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    overlap: Annotated[str, typer.Option(help="For how long the old secret works too: 90s, 30m, 24h, 7d.")] = "0s",
    json: Json = False,
) -> None:
    """Give a key another secret and show it, this once.

    Id, bounds and usage stay; the old secret ends after --overlap, by default within a second.
    """
    body = {"overlap_s": seconds_of(overlap)}
    made = Admin(state_directory()).post(f"/keys/{quote(key_id, safe='')}/rotate", MadeKey, body)
    if json:
        print_json(made)
    else:
        say(made.key)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows, or the name of a team.")],
    json: Json = False,
) -> None:
    """End a key or a team and every key below it; the gateway knows within a second."""
    Admin(state_directory()).delete(f"/keys/{quote(key_id, safe='')}", dict[str, str])
    if json:
        print_json({"id": key_id})
    else:
        say(f"{key_id} is revoked")


def _check_days(days: float) -> None:
    if days <= 0:
        raise UsageError("a key that has ended already is of no use", hint="--days 30")


def state_of(key: ListedKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None:
        return "live for a time" if key.expires_at > time.time() else "expired"
    return "live, two secrets" if key.former_until > time.time() else "live"


def seconds_of(text: str) -> float:
    """Of `90s`, `30m`, `24h` or `7d`. Raises UsageError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no length of time", hint="write for example 90s, 30m, 24h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


def _starts(now: float) -> tuple[str, str]:
    """The first day of today, and that of this month."""
    today = show_day(period_of(now).day)
    return today, f"{today[:8]}01"


def _used(admin: Admin, key: ListedKey, since: str) -> UsageRow:
    rows = admin.get(f"/usage?by={'team' if key.is_team else 'key'}&since={since}", list[UsageRow])
    return next((row for row in rows if row.id == key.id), UsageRow(id=key.id, name=key.name))


def _spent(row: UsageRow, most_tokens: int | None, most_pico: int | None) -> str:
    tokens = row.prompt_tokens + row.completion_tokens
    of_tokens = f" of {most_tokens:,}" if most_tokens is not None else ""
    of_money = f" of {show_pico(most_pico)}" if most_pico is not None else ""
    return f"{row.requests:,} requests, {tokens:,}{of_tokens} tokens, {row.cost}{of_money}"
