"""`modelyard engines`: which engines there are, what they can do, and their environments."""

from __future__ import annotations

import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from modelyard import settings as settings_module
from modelyard.cli.admin import listening, state_directory
from modelyard.cli.conformance import conformance, proved_here
from modelyard.cli.engines_import import import_command
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, print_table, say
from modelyard.cli.seven_steps import SevenSteps
from modelyard.cli.showing_engines import cells, look, price, told
from modelyard.control import wanted as desired
from modelyard.engines.builds import builds
from modelyard.engines.contract import Installed, Requirements
from modelyard.engines.hosting import requirements_here
from modelyard.engines.registry import engine, engines
from modelyard.errors import EnvironmentFailed, StateLocked, UsageError
from modelyard.hardware.machine import probe
from modelyard.node.diagnosis import Diagnosis, examine, repair
from modelyard.node.environments import ensure, folder_of, list_environments, sweep
from modelyard.node.environments import remove as remove_environment
from modelyard.node.making import InstallProgress, OnProgress
from modelyard.node.pinning import lock_file
from modelyard.node.pinning import pin as pin_packages
from modelyard.settings import Settings
from modelyard.state import StateDirectory

app = typer.Typer(help="Which engines there are, what they can do, and their environments.", no_args_is_help=True)
app.command()(conformance)
app.command("import")(import_command)

# Minutes on most lines, and enough of a disk that somebody may want to say no.
_LARGE_BYTES = 1_000_000_000

Name = Annotated[str, typer.Argument(help="An engine.")]
BuildOption = Annotated[str, typer.Option("--build", help="cpu, cuda or rocm; left out: what this machine calls for.")]


@app.command("list")
def list_engines(json: Json = False) -> None:
    """Every engine in every build: what it takes, whether it is on this machine, and what is proved with it here."""
    state = state_directory()
    found = look(engines(), state)
    if json:
        print_json(found)
        return
    columns = ("engine", "build", "version", "installed", "download", "takes", "proved here", "conformance", "serves")
    table, machine = Table(*columns, box=None, pad_edge=False), probe()
    for one in found:
        for build in one.builds:
            *first, formats = cells(one, build)
            table.add_row(*first, proved_here(state, build.installed, machine), formats)
    print_table(table)


@app.command()
def install(
    name: Name,
    build: BuildOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however large it is.")] = False,
    json: Json = False,
) -> None:
    """Make an engine's environment now, instead of at the first `up`.

    An interrupted installation is taken up again: packages that were fetched whole are not fetched a second time.
    """
    settings, state = settings_module.load(), state_directory()
    requirements = requirements_here(engine(name), probe(), platform.python_version(), asked=build or settings.build)
    OUT.quiet = json
    if requirements.packages and _installed(requirements, name, state) is None:
        say(price(name, requirements, state))
        _agree(requirements, yes=yes)
    try:
        made = _make(requirements, name, state, settings)
    except KeyboardInterrupt:
        say("What was fetched whole is kept: the same command goes on from there.")
        raise
    OUT.quiet = False
    if json:
        print_json(made)


@app.command()
def pin(name: Name, build: BuildOption = "", json: Json = False) -> None:
    """Write down which packages a build takes, with their hashes, from the index of your settings.

    For builds that come without a lock of ours, because the public index has no wheels of them (vLLM for ROCm): name
    an index that has in MODELYARD_EXTRA_INDEX_URL. Nothing is installed; `engines install` then takes exactly these.
    """
    settings, state = settings_module.load(), state_directory()
    requirements = requirements_here(engine(name), probe(), platform.python_version(), asked=build or settings.build)
    if not requirements.pinned_here:
        raise UsageError(f"{name} for {requirements.build} comes with a lock", hint=f"modelyard engines install {name}")
    packages = pin_packages(requirements, name, state, settings.index, environ=settings.environ)
    if json:
        print_json(packages)
    else:
        say(f"{len(packages)} packages of {name} ({requirements.build}) are pinned in")
        say(f"  {lock_file(requirements, name, state)}")


@app.command("remove")
def remove_engine(name: Name, build: BuildOption = "", json: Json = False) -> None:
    """Remove an engine's environments from this machine, and what interrupted installations left."""
    engine(name)
    state = state_directory()
    here = list_environments(state, also_lost=True)
    gone = [one for one in here if one.engine == name and build in ("", one.build)]
    for one in gone:
        _refuse_if_used(one, state)
    for one in gone:
        remove_environment(one, state)
    sweep(state)
    if json:
        print_json([one.root for one in gone])
    else:
        say(f"{len(gone)} environment{'s' if len(gone) != 1 else ''} removed")


@app.command()
def doctor(
    name: Annotated[str, typer.Argument(help="An engine; left out: every one that is installed.")] = "",
    mend: Annotated[bool, typer.Option("--repair", help="Make anew what is not as it was installed.")] = False,
    json: Json = False,
) -> None:
    """Is an environment still as it was installed: every file, its Python, the versions, the import?"""
    state = state_directory()
    found = [one for one in list_environments(state, also_lost=True) if name in ("", one.engine)]
    if name and not found:
        engine(name)
        raise EnvironmentFailed(f"{name} is not installed here", hint=f"modelyard engines install {name}")
    OUT.quiet = json
    seen = [_examined(one, state, mend=mend) for one in found]
    OUT.quiet = False
    if json:
        print_json(seen)
    elif not seen:
        say("no engine is installed here")
    if broken := sorted({one.installed.engine for one in seen if not one.whole}):
        hint = f"modelyard engines doctor {broken[0]} --repair"
        if any(_requirements(one.installed, state) is None for one in seen if not one.whole):
            hint = f"modelyard engines remove {broken[0]}   (another version made it; install it again)"
        raise EnvironmentFailed(f"not as it was installed: {', '.join(broken)}", hint=hint)


def _make(requirements: Requirements, name: str, state: StateDirectory, settings: Settings) -> Installed:
    with SevenSteps(name, OUT, as_json=False).step("environment") as step:

        def heard(progress: InstallProgress) -> None:
            step.advance(progress.text, progress.fraction)

        made = ensure(requirements, name, state, settings.index, heard, environ=settings.environ)
        step.result = f"{name} {made.version} ({made.build}) in {made.root}"
    return made


def _examined(one: Installed, state: StateDirectory, *, mend: bool) -> Diagnosis:
    """Looked at, and mended where that is wanted and needed; the findings are told as they come."""
    requirements = _requirements(one, state)
    with _bar(f"{one.engine} ({one.build})") as heard:
        found = examine(one, requirements, heard)
    _say_all(told(found))
    if found.whole or not mend or requirements is None:
        return found
    _refuse_if_used(one, state)
    settings = settings_module.load()
    with _bar(f"{one.engine} ({one.build})") as heard:
        made = repair(found, requirements, state, settings.index, heard, environ=settings.environ)
        found = examine(made, requirements, heard)
    _say_all(["made anew:", *told(found)])
    return found


def _requirements(one: Installed, state: StateDirectory) -> Requirements | None:
    """What this environment was made from; None where another version of Modelyard, or another Python, made it."""
    of_engine = [builds(each) for each in engines() if each.name == one.engine]
    return next((need for need in sum(of_engine, ()) if str(folder_of(need, one.engine, state)) == one.root), None)


def _installed(requirements: Requirements, name: str, state: StateDirectory) -> Installed | None:
    root = str(folder_of(requirements, name, state))
    return next((one for one in list_environments(state) if one.root == root), None)


def _agree(requirements: Requirements, *, yes: bool) -> None:
    """Asks where it is large and somebody is there to answer. Raises Exit where the answer is no."""
    large = requirements.download_bytes >= _LARGE_BYTES
    asked = large and not yes and sys.stdin.isatty() and OUT.is_terminal and not OUT.quiet
    if asked and not typer.confirm("Install it?", default=True):
        say("nothing was changed")
        raise typer.Exit(0)


def _refuse_if_used(one: Installed, state: StateDirectory) -> None:
    """Raises StateLocked where a deployment that is being served runs in it."""
    if listening(state) is None:
        return
    for name in desired.names(state):
        wanted = desired.load(state, name)
        if wanted is not None and wanted.install.root == one.root:
            raise StateLocked(f"{name} is being served from {one.root}", hint="modelyard down, then try again")


def _say_all(lines: list[str]) -> None:
    for line in lines:
        say(line)


@contextmanager
def _bar(what: str) -> Generator[OnProgress]:
    """A bar while something long is looked at; nothing where nobody looks."""
    if OUT.quiet or not OUT.is_terminal:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30))
    with Progress(*columns, console=OUT, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def heard(told: InstallProgress) -> None:
            total = None if told.fraction is None else 1.0
            progress.update(task, description=f"{what}: {told.text}", total=total, completed=told.fraction or 0.0)

        yield heard
