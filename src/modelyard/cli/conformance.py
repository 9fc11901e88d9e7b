"""`modelyard engines conformance`: does an engine do on this machine what its adapter claims?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape

from modelyard import settings as settings_module
from modelyard.cli.admin import state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.cli.prepare import prepare
from modelyard.cli.seven_steps import SevenSteps
from modelyard.clock import SYSTEM
from modelyard.engines.contract import Installed
from modelyard.engines.registry import engine
from modelyard.errors import CheckFailed, UsageError
from modelyard.hardware.machine import Machine, probe
from modelyard.models.reader import read_card
from modelyard.settings import Settings
from modelyard.spec.deployment import Deployment, default_deployment, load
from modelyard.state import StateDirectory
from modelyard.verify.conformance.document import MARKS, document, in_short
from modelyard.verify.conformance.record import Conformance, Outcome, Verdict, latest, save
from modelyard.verify.conformance.subject import Subject

if TYPE_CHECKING:
    from modelyard.verify.conformance.row import Row

_COLOURS: dict[Verdict, str] = {"green": "green", "red": "red", "not claimed": "dim", "not asked": "yellow"}
_NAME_WIDTH = 18
_WORTH_TELLING_S = 0.1


def conformance(
    name: Annotated[str, typer.Argument(help="An engine.")],
    model: Annotated[
        str, typer.Option(help="What it serves meanwhile: a name of the catalogue, a path, or a deployment file.")
    ] = "smollm2",
    report: Annotated[
        Path | None, typer.Option(help="Also write a Markdown document that can be attached to an issue.")
    ] = None,
    json: Json = False,
) -> None:
    """Try everything that an engine claims: start, answers, metrics, cancelling, endings, refusals.

    Its environment and the model are fetched where they are not here. Nothing else that runs is touched, but whatever
    keeps this machine busy makes times longer. Exit code 7 where a row is red."""
    from modelyard.verify.conformance.kit import run

    state, settings = state_directory(), settings_module.load()
    if report is not None and not report.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {report.absolute().parent}", hint="name a file in a folder that exists")
    OUT.quiet = json
    subject = _subject(name, model, state, settings)
    with _Rows(OUT) as rows:
        result = asyncio.run(run(subject, clock=SYSTEM, on_row=rows.trying, on_outcome=rows.done))
    OUT.quiet = False
    save(state, result)
    if report is not None:
        report.write_text(document(result))
    if json:
        print_json(result)
    else:
        say(f"\n{result.engine} {result.version}: {in_short(result)}")
    if not result.green:
        raise CheckFailed(
            f"{name} does not do what it claims: {', '.join(one.row for one in result.red) or 'nothing was asked'}",
            hint="\n".join(_advice(result, report)),
        )


def proved_here(state: StateDirectory, install: Installed | None, machine: Machine) -> str:
    """For `engines list`: the day of the last result that speaks for this installation on this machine."""
    result = latest(state, install.engine) if install is not None else None
    if install is None or result is None or not result.speaks_for(install, machine):
        return "no"
    day = time.strftime("%Y-%m-%d", time.localtime(result.at))
    return day if result.green else f"red {day}"


def _subject(name: str, model: str, state: StateDirectory, settings: Settings) -> Subject:
    chosen = engine(name)
    deployment = replace(_deployment(model), engine=name, replicas=1)
    wanted = prepare(deployment, state, settings, SevenSteps(name, OUT, as_json=False))
    return Subject(
        engine=chosen,
        install=wanted.install,
        deployment=deployment,
        plan=wanted.plan,
        card=read_card(Path(wanted.plan.replicas[0].artifact.path)),
        machine=probe(),
        probes=wanted.probes,
    )


def _deployment(model: str) -> Deployment:
    if not model.endswith((".yaml", ".yml")):
        return default_deployment(model)
    first, *others = load(Path(model))
    if others:
        raise UsageError(f"{model} holds {len(others) + 1} deployments", hint="name a file that holds one")
    return first


def _advice(result: Conformance, report: Path | None) -> list[str]:
    lines = [f"{one.row}: {one.advice}" for one in result.red]
    return lines if report is not None else [*lines, "--report FILE writes every row and the log's last lines"]


class _Rows:
    """Rows as they come out; on a terminal the one that is tried stands below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._status is not None:
            self._status.stop()

    def trying(self, row: Row) -> None:
        if self._status is not None:
            self._status.update(f"{row.name}: {escape(row.claim)}")

    def done(self, outcome: Outcome) -> None:
        colour, mark = _COLOURS[outcome.verdict], MARKS[outcome.verdict]
        told = outcome.measured if outcome.verdict in ("green", "red") else f"{outcome.verdict}: {outcome.measured}"
        seconds = f"  [dim]{outcome.duration_s:.1f} s[/dim]" if outcome.duration_s >= _WORTH_TELLING_S else ""
        self._console.print(f"[{colour}]{mark}[/] [bold]{outcome.row:<{_NAME_WIDTH}}[/bold] {escape(told)}{seconds}")
        if outcome.verdict == "red":
            self._console.print(f"  {'':<{_NAME_WIDTH}} not proved that {escape(outcome.claim)}", style="dim")
            self._console.print(f"  {'':<{_NAME_WIDTH}} predicted {escape(outcome.predicted)}", style="dim")
