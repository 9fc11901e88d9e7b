"""`modelyard status`, `verify` and `restart`: is it well, is it still proved, start it afresh."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from modelyard.cli.admin import Admin, listening, state_directory
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json, say
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.errors import CheckFailed, NotRunning
from modelyard.records.base import Record
from modelyard.records.evidence import Evidence
from modelyard.records.listening import Listening
from modelyard.verify.report import Report, explain


class Status(Record, kw_only=True):
    """What `status --json` prints. `serving` is None where nothing runs."""

    serving: Listening | None
    deployments: tuple[DeploymentView, ...]


def status(
    name: Annotated[str | None, typer.Argument(help="One deployment, with its evidence.")] = None,
    json: Json = False,
) -> None:
    """Is it well? Exit code 9 where nothing is served, 6 where a deployment is closed."""
    state = state_directory()
    where = listening(state)
    views: list[DeploymentView] = []
    if where is not None:
        admin = Admin(state)
        found = (
            [admin.get(f"/deployments/{name}", DeploymentView)]
            if name
            else admin.get("/deployments", list[DeploymentView])
        )
        views = found
    if json:
        print_json(Status(serving=where, deployments=tuple(views)))
    elif where is not None:
        _show(where, views, with_evidence=name is not None)
    if where is None:
        raise NotRunning("nothing is being served from here", hint="modelyard up")
    if not all(view.open for view in views):
        raise typer.Exit(6)


def _show(where: Listening, views: list[DeploymentView], *, with_evidence: bool) -> None:
    say(f"{where.url}    up {_ago(time.time() - where.started_at)}")
    table = Table(box=None, pad_edge=False)
    for column in ("deployment", "route", "replica", "phase", "requests", "KV cache", "proved"):
        table.add_column(column)
    for view in views:
        for replica in view.replicas:
            route = "[green]open[/green]" if replica.routed else "[red]closed[/red]"
            table.add_row(view.name, route, replica.name, _phase(replica), *_load(replica), _proved(view.evidence))
    OUT.print(table)
    for view in views:
        for replica in view.replicas:
            if not replica.routed and replica.cause:
                say(f"{replica.name}: {replica.cause}")
                say(f"  try: {replica.fix}")
        if with_evidence:
            _show_evidence(view)


def _phase(replica: ReplicaView) -> str:
    return (
        f"{replica.phase} {replica.fraction:.0%}" if replica.fraction and replica.phase == "loading" else replica.phase
    )


def _load(replica: ReplicaView) -> tuple[str, str]:
    """Absent stays absent: an engine that does not say is not at zero."""
    running = "-" if replica.running_requests is None else f"{replica.running_requests:g}"
    return running, "-" if replica.kv_used_ratio is None else f"{replica.kv_used_ratio:.0%}"


def _proved(evidence: tuple[Evidence, ...]) -> str:
    if not evidence:
        return "not yet"
    now = time.time()
    green = sum(one.verdict == "green" and now < one.expires_at for one in evidence)
    return f"{green}/{len(evidence)}, {_ago(now - min(one.at for one in evidence))} ago"


def _show_evidence(view: DeploymentView) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("check", "verdict", "claim", "measured"):
        table.add_column(column)
    for one in view.evidence:
        verdict = "[green]green[/green]" if one.verdict == "green" else "[red]red[/red]"
        table.add_row(one.check, verdict, one.claim, one.measured.replace("[", r"\["))
    OUT.print(table)


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def verify(
    name: Annotated[str, typer.Argument(help="A deployment that is served.")],
    json: Json = False,
) -> None:
    """Ask every check of a running deployment again and keep the evidence. Exit code 7 where one is red."""
    report = Admin(state_directory()).post(f"/deployments/{name}/verify", Report)
    if json:
        print_json(report)
    else:
        for one in report.evidence:
            say(f"{'✓' if one.verdict == 'green' else '✗'} {one.check}: {one.claim} ({one.measured})")
        for one in report.skipped:
            say(f"- {one.check}: {one.reason}")
    if not report.green:
        raise CheckFailed(f"{len(report.red)} checks are red", hint="\n".join(explain(report)))


def restart(
    name: Annotated[str, typer.Argument(help="A deployment.")],
    json: Json = False,
) -> None:
    """End and start every engine of a deployment, also one that had failed."""
    Admin(state_directory()).post(f"/deployments/{name}/restart", dict[str, str])
    if json:
        print_json({"name": name})
    else:
        say(f"{name} is starting again; modelyard status {name}")
