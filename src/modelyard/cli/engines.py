"""`modelyard engines`: which engines there are, what they can do, and their environments."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from modelyard import settings as settings_module
from modelyard.cli.admin import state_directory
from modelyard.cli.engines_import import import_command
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.cli.seven_steps import SevenSteps
from modelyard.engines.registry import engine, engines
from modelyard.node.environments import InstallProgress, ensure, list_environments, remove
from modelyard.spec.sizes import show

app = typer.Typer(help="Which engines there are, what they can do, and their environments.", no_args_is_help=True)
app.command("import")(import_command)


@app.command("list")
def list_engines(json: Json = False) -> None:
    """Every engine, and whether its environment is on this machine."""
    installed = {one.engine: one for one in list_environments(state_directory())}
    if json:
        print_json(
            [
                {"name": one.name, "capabilities": one.capabilities, "installed": installed.get(one.name)}
                for one in engines()
            ]
        )
        return
    table = Table("engine", "version", "installed", "takes", "serves", box=None, pad_edge=False)
    for one in engines():
        needs = one.requirements
        here = "built in" if not needs.packages else "yes" if one.name in installed else "no"
        formats = ", ".join(sorted(one.capabilities.formats))
        table.add_row(one.name, needs.version, here, show(needs.installed_bytes), formats)
    OUT.print(table)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="An engine.")],
    json: Json = False,
) -> None:
    """Make an engine's environment now, instead of at the first `up`."""
    chosen, settings = engine(name), settings_module.load()
    steps = SevenSteps(name, OUT, as_json=False)
    OUT.quiet = json
    with steps.step("environment") as step:

        def heard(progress: InstallProgress) -> None:
            step.advance(progress.stage, progress.fraction)

        made = ensure(chosen.requirements, name, state_directory(), settings.index, heard, environ=settings.environ)
        step.result = f"{name} {made.version} in {made.root}"
    OUT.quiet = False
    if json:
        print_json(made)


@app.command("remove")
def remove_engine(
    name: Annotated[str, typer.Argument(help="An engine.")],
    json: Json = False,
) -> None:
    """Remove an engine's environments from this machine."""
    engine(name)
    state = state_directory()
    gone = [one for one in list_environments(state) if one.engine == name]
    for one in gone:
        remove(one, state)
    if json:
        print_json([one.root for one in gone])
    else:
        say(f"{len(gone)} environment{'s' if len(gone) != 1 else ''} removed")
