"""`modelyard keys`: who may call."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from modelyard.cli.admin import Admin, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.control.key_log import ListedKey
from modelyard.errors import UsageError
from modelyard.records.base import Record

app = typer.Typer(help="Who may call: keys are made, shown once, revoked.", no_args_is_help=True)


class MadeKey(Record, kw_only=True):
    """The one time that `key` is seen."""

    id: str
    name: str
    key: str


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    days: Annotated[float | None, typer.Option(help="It ends by itself after this many days.")] = None,
    deployment: Annotated[list[str] | None, typer.Option(help="Only for this deployment. Repeatable.")] = None,
    parent: Annotated[str | None, typer.Option(help="The id of a key that it never reaches beyond.")] = None,
    json: Json = False,
) -> None:
    """Make a key and show it, this once; only its hash is kept."""
    body = {"name": name, "ttl_s": None if days is None else days * 86_400, "parent": parent, "deployments": deployment}
    if days is not None and days <= 0:
        raise UsageError("a key that has ended already is of no use", hint="--days 30")
    made = Admin(state_directory()).post("/keys", MadeKey, body)
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
    table = Table("id", "name", "state", "for", "parent", box=None, pad_edge=False)
    # Each `modelyard chat` made one for itself and took it back.
    for key in (key for key in found if key.revoked_at is None or not key.name.startswith("chat ")):
        table.add_row(key.id, key.name, _state(key), ", ".join(key.deployments or ("everything",)), key.parent or "-")
    OUT.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    json: Json = False,
) -> None:
    """End a key and every key below it; the gateway knows within a second."""
    Admin(state_directory()).delete(f"/keys/{key_id}", dict[str, str])
    if json:
        print_json({"id": key_id})
    else:
        say(f"{key_id} is revoked")


def _state(key: ListedKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "live"
    return "live for a time" if key.expires_at > time.time() else "expired"
