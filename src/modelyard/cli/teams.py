"""`modelyard teams`: bounds that several keys share."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from modelyard.cli import bounding
from modelyard.cli.admin import Admin, state_directory
from modelyard.cli.keys import change, state_of
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.control.key_log import ListedKey
from modelyard.records.base import Record

app = typer.Typer(help="Teams: bounds that the keys and teams below them share.", no_args_is_help=True)
app.command()(change)


class MadeTeam(Record, kw_only=True):
    id: str
    name: str


@app.command()
@bounding.bounded
def create(
    name: Annotated[str, typer.Argument(help="The team's name; keys are made with --team NAME.")],
    team: Annotated[str | None, typer.Option(help="The team above it: its bounds hold too.")] = None,
    *,
    bounds: dict[str, object],
    json: Json = False,
) -> None:
    """Make a team. Its bounds hold for all below it together; `keys revoke NAME` ends it with every key below.

    Example: modelyard teams create research --budget-per-month 200.00 --requests-per-minute 600
    """
    made = Admin(state_directory()).post("/teams", MadeTeam, {**bounds, "name": name, "parent": team})
    if json:
        print_json(made)
    else:
        say(f"team {made.name!r} is there: modelyard keys create NAME --team {made.name}")


@app.command("list")
def list_teams(json: Json = False) -> None:
    """Every team with its bounds."""
    found = Admin(state_directory()).get("/teams", list[ListedKey])
    if json:
        print_json(found)
        return
    table = Table("id", "name", "state", "for", "below", "bounds", box=None, pad_edge=False)
    for team in found:
        below = ", ".join(team.line) or "-"
        table.add_row(team.id, team.name, state_of(team), bounding.scopes_text(team), below, bounding.bounds_text(team))
    OUT.print(table)
