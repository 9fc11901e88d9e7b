"""`modelyard models`: what can be served by name, what is here, what a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from modelyard import settings as settings_module
from modelyard.cli.admin import state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.cli.seven_steps import SevenSteps
from modelyard.clock import SYSTEM
from modelyard.models.card import describe
from modelyard.models.catalogue import ENTRIES
from modelyard.models.reader import read_card
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.spec.sizes import show

app = typer.Typer(help="What can be served by name, what is here, what a model is.", no_args_is_help=True)


@app.command("list")
def list_models(json: Json = False) -> None:
    """The catalogue, and which of it is on this machine."""
    store = Store(state_directory(), SYSTEM)
    here = {one.name for one in store.stored()}
    if json:
        print_json([{"name": one.name, "summary": one.summary, "here": one.name in here} for one in ENTRIES.values()])
        return
    table = Table("name", "size", "here", "licence", "what it is", box=None, pad_edge=False)
    for entry in ENTRIES.values():
        table.add_row(
            entry.name, show(entry.file.size_bytes), "yes" if entry.name in here else "no", entry.licence, entry.summary
        )
    OUT.print(table)
    say("any GGUF file or Hugging Face folder can be named by its path instead")


@app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="A name of the catalogue, or a path.")],
    json: Json = False,
) -> None:
    """A model's card, read from its header: architecture, KV bytes per token, weights by type, context."""
    steps = SevenSteps(model, OUT, as_json=False)
    OUT.quiet = json
    with steps.step("model") as step:
        artifact = resolve(
            model,
            state_directory(),
            settings_module.load(),
            lambda what, done, total: step.advance(f"{what} {show(done)}", done / total if total else None),
        )
        card = read_card(Path(artifact.path))
        step.result = f"{artifact.name}, sha256 {artifact.sha256}"
    OUT.quiet = False
    if json:
        print_json({"artifact": artifact, "card": card})
        return
    for label, text in describe(card):
        say(f"  {label:<14} {text}")
