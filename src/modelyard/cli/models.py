"""`modelyard models`: what can be served by name, what is here, what a model is; and moving models between machines."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from modelyard import settings as settings_module
from modelyard.cli.admin import state_directory
from modelyard.cli.kept import Kept, users_of
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.cli.seven_steps import Advance, Current, SevenSteps
from modelyard.clock import SYSTEM
from modelyard.errors import ModelyardError, UsageError
from modelyard.models.card import describe
from modelyard.models.catalogue import ENTRIES
from modelyard.models.derived import Derived
from modelyard.models.hashing import Progress
from modelyard.models.reader import read_card
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.spec.sizes import show

app = typer.Typer(
    help="What can be served by name, what is here, what a model is; packs for machines without a network.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="A name of the catalogue, a path, or a URL (hf://, ollama://, https://).")]
Stored = Annotated[str, typer.Argument(help="A name that `modelyard models list` shows.")]


@app.command("list")
def list_models(json: Json = False) -> None:
    """The catalogue, and every model that is on this machine."""
    store = Store(state_directory(), SYSTEM)
    here = {one.name: one for one in store.stored()}
    fetched = [one for one in here.values() if one.name not in ENTRIES]
    made = Derived(store).made()
    asked_by = {pin.name: pin.reference for pin in store.pins()}
    if json:
        catalogue = [{"name": one.name, "summary": one.summary, "here": one.name in here} for one in ENTRIES.values()]
        others = [
            {"name": one.name, "reference": asked_by.get(one.name, one.name), "summary": one.lineage, "here": True}
            for one in fetched
        ]
        derived = [{"name": key, "summary": f"{one.name}: {one.lineage}", "here": True} for key, one in made]
        print_json([*catalogue, *others, *derived])
        return
    table = Table(Column("name", no_wrap=True), "size", "here", "licence", "what it is", box=None, pad_edge=False)
    for entry in ENTRIES.values():
        is_here = "yes" if entry.name in here else "no"
        table.add_row(entry.name, show(entry.file.size_bytes), is_here, entry.licence, entry.summary)
    for one in fetched:
        name, is_here = asked_by.get(one.name, one.name), "in place" if one.place else "yes"
        table.add_row(name, show(one.size_bytes), is_here, one.licence, one.lineage)
    for key, one in made:
        table.add_row(key, show(one.size_bytes), "made here", "", f"{one.name}: {one.lineage}")
    # Wider than a pipe's 80 columns where names need it: they are there to be copied.
    OUT.print(table, width=max(OUT.width, 120))
    say("others are named by a path, or by where they are: hf://org/name:Q4_K_M, ollama://name, https://.../x.gguf")


@app.command("show")
def show_model(model: Model, json: Json = False) -> None:
    """A model's card, read from its header: architecture, KV bytes per token, weights by type, context."""
    steps = SevenSteps(model, OUT, as_json=False)
    with _quiet(json), steps.step("model") as step:
        artifact = resolve(model, state_directory(), settings_module.load(), _heard(step))
        card = read_card(Path(artifact.path))
        step.result = f"{artifact.name}, sha256 {artifact.sha256}"
    if json:
        print_json({"artifact": artifact, "card": card})
        return
    for label, text in (*describe(card), ("from", artifact.lineage), *(("note", note) for note in artifact.notes)):
        say(f"  {label:<14} {text}")


@app.command("fetch")
def fetch_model(model: Model, json: Json = False) -> None:
    """Fetch a model now. A branch, tag or URL that was fetched before is asked again for what it means today."""
    steps = SevenSteps(model, OUT, as_json=False)
    with _quiet(json), steps.step("model") as step:
        artifact = resolve(model, state_directory(), settings_module.load(), _heard(step), again=True)
        step.result = f"{artifact.name} · {show(artifact.size_bytes)} · {artifact.lineage}"
    if json:
        print_json(artifact)
        return
    for note in artifact.notes:
        steps.note(note)


@app.command()
def verify(
    model: Annotated[str | None, typer.Argument(help="A name that `modelyard models list` shows.")] = None,
    json: Json = False,
) -> None:
    """Read every byte of the stored models again and compare it with its hash."""
    store = Store(state_directory(), SYSTEM)
    kept = [Kept.stored(store, one) for one in store.stored()] + Kept.all_made(store)
    chosen = kept if model is None else [Kept.called(store, model)]
    wrong: dict[str, ModelyardError] = {}
    for one in chosen:
        steps = SevenSteps(one.name, OUT, as_json=False)
        with _quiet(json), steps.step("model") as step:
            try:
                one.verify(_heard(step))
                step.result = f"{one.name}: {show(one.size_bytes)} as they were stored"
            except ModelyardError as error:
                wrong[one.name] = error
                step.ok, step.result = False, error.message
    if json:
        print_json([{"name": one.name, "ok": one.name not in wrong} for one in chosen])
    for error in wrong.values():
        raise error


@app.command()
def remove(model: Stored, json: Json = False) -> None:
    """Remove a model from the store. Weights that are used in place are only forgotten."""
    state = state_directory()
    store = Store(state, SYSTEM)
    one = Kept.called(store, model)
    if users := users_of(state, one.path):
        raise UsageError(f"{one.name} is served as {', '.join(users)}", hint="modelyard down, and then remove it")
    with store.writing() as writer:
        freed = one.remove(writer) + writer.garbage()
    if json:
        print_json({"name": one.name, "freed_bytes": freed})
    else:
        say(f"{one.name} removed: {show(freed)} came free")


@app.command()
def clean(json: Json = False) -> None:
    """Give back the space of interrupted fetches; they would begin anew then."""
    with Store(state_directory(), SYSTEM).writing() as writer:
        freed = writer.garbage()
    if json:
        print_json({"freed_bytes": freed})
    else:
        say(f"{show(freed)} came free")


@app.command()
def pack(
    what: Annotated[str, typer.Argument(help="A deployment file (.yaml), or a model as for `up`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder, or a file that ends in .tar.")],
    engine: Annotated[str | None, typer.Option(help="Engine, in place of the planned one.")] = None,
    json: Json = False,
) -> None:
    """Put a deployment, its weights and its engine's wheels together, for a machine without a network.

    That machine needs Modelyard itself, the same Python version, and the same kind of processor.
    """
    from modelyard.cli.packing import Packing, choose

    began = time.monotonic()
    state, settings = state_directory(), settings_module.load()
    with _quiet(json):
        chosen, file = choose(what, engine, state, settings)
        steps = SevenSteps(what, OUT, as_json=False)
        with steps.bar("pack") as advance:
            packing = Packing(Store(state, SYSTEM), settings, _telling(advance))
            made, sha256 = packing.run(chosen, file, output.absolute())
    if json:
        print_json({"path": str(output), "sha256": sha256, "size_bytes": made.size_bytes})
        return
    say(f"{output}: {len(made.files)} files, {show(made.size_bytes)}, in {time.monotonic() - began:.1f} s")
    say(f"on the other machine: modelyard models unpack {output.name} --sha256 {sha256}")


@app.command()
def unpack(
    pack: Annotated[Path, typer.Argument(help="What `pack` wrote.")],
    file: Annotated[Path, typer.Option(help="Where to write the deployment file.")] = Path("modelyard.yaml"),
    sha256: Annotated[str | None, typer.Option(help="Refuse any other pack than the one with this hash.")] = None,
    json: Json = False,
) -> None:
    """Take a pack into this machine's store: every byte is checked, and the engine is installed from the pack alone."""
    from modelyard.cli.unpacking import Unpacking
    from modelyard.models.pack import open_pack

    state, settings = state_directory(), settings_module.load()
    steps = SevenSteps(str(pack), OUT, as_json=False)
    with _quiet(json), steps.bar("unpack") as advance, open_pack(pack) as opened:
        if sha256 is not None and opened.sha256 != sha256.lower():
            raise UsageError(f"{pack} has SHA-256 {opened.sha256}, not {sha256}", hint="it is another pack, or changed")
        unpacking = Unpacking(state, settings, _telling(advance))
        done = unpacking.run(opened, file.absolute())
        unpacking.make_environments(done.manifest)
    models = [artifact.name for artifact in done.manifest.artifacts]
    engines = [f"{one.name} {one.version}" for one in done.manifest.engines]
    if json:
        print_json({"file": str(done.deployment), "sha256": done.sha256, "models": models, "engines": engines})
        return
    say(f"{', '.join(models)} and {', '.join(engines)} are here, {show(done.manifest.size_bytes)} checked")
    say(f"next: {settings.command} up {file}")


def _heard(step: Current) -> Progress:
    return _telling(step.advance)


def _telling(advance: Advance) -> Progress:
    return lambda what, done, total: advance(f"{what} {show(done)}", done / total if total else None)


@contextmanager
def _quiet(json: bool) -> Generator[None]:
    """Only JSON is printed where it was asked for."""
    OUT.quiet = json
    try:
        yield
    finally:
        OUT.quiet = False
