"""`modelyard plan` and `schema`: what would run and why; what a deployment file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from modelyard import settings as settings_module
from modelyard.cli.admin import state_directory
from modelyard.cli.choosing import choose, took_file
from modelyard.cli.options import WHAT, Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.cli.prepare import Prepared, look
from modelyard.cli.seven_steps import SevenSteps
from modelyard.engines import registry
from modelyard.models.card import describe
from modelyard.spec.deployment import default_deployment, json_schema, load
from modelyard.spec.sizes import show


def plan(
    what: Annotated[str | None, WHAT] = None,
    engine: Annotated[str | None, typer.Option(help="Engine, in place of the planned one.")] = None,
    json: Json = False,
) -> None:
    """Show what `up` would run: settings with their reasons, memory with its intervals, what was not chosen and why."""
    choice = choose(what, Path())
    deployments = load(Path(choice.what)) if choice.is_file else (default_deployment(choice.what),)
    if choice.is_file and not choice.named and not json:
        say(took_file(choice, len(deployments), settings_module.load().command))
    if engine is not None:
        named = registry.engine(engine).name
        deployments = tuple(msgspec.structs.replace(one, engine=named) for one in deployments)
    state, settings = state_directory(), settings_module.load()
    found: list[Prepared] = []
    for deployment in deployments:
        steps = SevenSteps(deployment.name, OUT, as_json=False)
        if json:
            steps.console.quiet = True
        prepared = look(deployment, state, settings, steps)
        found.append(prepared)
    OUT.quiet = False
    if json:
        print_json([one.plan for one in found])
        return
    for one in found:
        _show(one)


def _show(prepared: Prepared) -> None:
    planned = prepared.plan
    first = planned.replicas[0]
    say(
        f"\n{planned.deployment}: {first.engine}, {len(planned.replicas)} replica(s), "
        f"context {first.context_tokens:,} tokens, "
        f"{first.max_in_flight} requests at once"
    )
    if prepared.card is not None:
        for label, text in describe(prepared.card):
            say(f"  {label:<14} {text}")
    table = Table("setting", "value", "reason", box=None, pad_edge=False)
    for setting in first.settings:
        table.add_row(setting.name, str(setting.value), setting.reason)
    say("")
    OUT.print(table)
    say("")
    table = Table("predicted", "value", "interval", box=None, pad_edge=False)
    for one in planned.predictions:
        value, low, high = (_amount(number, one.unit) for number in (one.value, one.low, one.high))
        table.add_row(one.what, value, f"{low} to {high}")
    OUT.print(table)
    if planned.rejected:
        say("")
    for rejected in planned.rejected:
        say(f"not {rejected.what}: {rejected.reason}")


def _amount(value: float, unit: str) -> str:
    return show(value) if unit == "bytes" else f"{value:.3g} {unit}"


def schema() -> None:
    """Print the JSON Schema of deployment files, for editors."""
    print_json(json_schema())
