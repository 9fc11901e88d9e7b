"""`modelyard status`, `verify` and `restart`: is it well, is it still proved, start it afresh."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelyard.cli.admin import Admin, gateways, listening, state_directory
from modelyard.cli.health import Health, Level, Seen, ToDo, ago, expires_in_s, judge
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, as_called, print_json, say
from modelyard.cli.visible import visible
from modelyard.control.key_log import ListedKey
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.errors import CheckFailed, NotRunning, UsageError
from modelyard.hardware.machine import disk_free_bytes
from modelyard.observe.recent import Traffic, recent_traffic
from modelyard.records.base import Record
from modelyard.records.evidence import Evidence
from modelyard.records.listening import Gateways, Listening
from modelyard.state import StateDirectory
from modelyard.verify.report import Report, explain

LOOK_EVERY_S = 2.0
_COLOURS: dict[Level, str] = {"well": "green", "degraded": "yellow", "closed": "red"}


class Status(Record, kw_only=True):
    """What `status --json` prints. `serving` and `health` are None where nothing runs."""

    serving: Listening | None
    deployments: tuple[DeploymentView, ...]
    health: Health | None = None
    traffic: tuple[Traffic, ...] = ()
    gateways: Gateways | None = None


def status(
    name: Annotated[str | None, typer.Argument(help="One deployment, with its evidence.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every 2 s, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Is it well? Exit code 9 where nothing is served, 6 where a deployment is closed."""
    state = state_directory()
    if watch:
        if json:
            raise UsageError("--watch is for people", hint="ask again: modelyard status --json")
        _watch(state, name)
        return
    found = _look(state, name)
    if json:
        print_json(found)
    elif found.serving is not None:
        OUT.print(_page(found, with_evidence=name is not None))
    _end(found)


def _look(state: StateDirectory, name: str | None) -> Status:
    where = listening(state)
    if where is None:
        return Status(serving=None, deployments=())
    admin = Admin(state)
    if name:
        views = (admin.get(f"/deployments/{name}", DeploymentView),)
    else:
        views = tuple(admin.get("/deployments", list[DeploymentView]))
    now = time.time()
    traffic = recent_traffic(state.journal, now)
    seen = Seen(
        now=now,
        deployments=views,
        keys=tuple(admin.get("/keys", list[ListedKey])),
        traffic=tuple(one for one in traffic if any(view.name == one.deployment for view in views)),
        disk_free_bytes=disk_free_bytes(state.root),
    )
    return Status(serving=where, deployments=views, health=judge(seen), traffic=seen.traffic, gateways=gateways(state))


def _end(found: Status) -> None:
    if found.serving is None:
        raise NotRunning("nothing is being served from here", hint="modelyard up")
    if not all(view.open for view in found.deployments):
        raise typer.Exit(6)


def _watch(state: StateDirectory, name: str | None) -> None:
    """Until Ctrl-C, or until nothing is served any more. Where nobody can be repainted for, each look is a page."""
    live = Live(console=OUT, auto_refresh=False, vertical_overflow="visible")
    try:
        with live:
            while True:
                found = _look(state, name)
                if found.serving is None:
                    break
                page = _page(found, with_evidence=name is not None)
                if OUT.is_terminal and not OUT.is_dumb_terminal:
                    live.update(page, refresh=True)
                else:
                    OUT.print(page)
                time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        return
    _end(found)


def _page(found: Status, *, with_evidence: bool) -> RenderableType:
    """The sentence, where it serves, the table, and what is to be done."""
    assert found.serving is not None and found.health is not None
    health = found.health
    parts: list[RenderableType] = [
        Text(visible(health.sentence), style=_COLOURS[health.level]),
        Text(f"{found.serving.url}    up {ago(time.time() - found.serving.started_at)}{_workers(found.gateways)}"),
        _table(found),
        *(_to_do(one) for one in health.to_do),
    ]
    if with_evidence:
        parts += [_evidence(view) for view in found.deployments]
    return Group(*parts)


def _workers(seen: Gateways | None) -> str:
    """`    3 of 4 workers serve, 1 finishes its answers`; nothing where there is one, and it serves."""
    if seen is None or (len(seen.serving) == 1 and seen.serving[0].is_ready and not seen.leaving):
        return ""
    ready = sum(one.is_ready for one in seen.serving)
    text = f"    {ready} of {seen.workers} worker{'s' if seen.workers != 1 else ''} serve"
    return text + (f", {len(seen.leaving)} finishing answers" if seen.leaving else "")


def _to_do(one: ToDo) -> Text:
    command = f": {as_called(one.command)}" if one.command else ""
    return Text(f"→ {visible(one.what)}{command}")


def _table(found: Status) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("deployment", "route", "replica", "phase", "now", "KV", "last minute", "proved"):
        table.add_column(column)
    traffic = {one.deployment: one for one in found.traffic}
    for view in found.deployments:
        for number, replica in enumerate(view.replicas):
            route = Text("open", "green") if replica.routed else Text("closed", "red")
            # What is true of the deployment stands once, at its first replica.
            minute, proved = (_minute(traffic.get(view.name)), _proved(view.evidence)) if number == 0 else ("", "")
            table.add_row(view.name, route, replica.name, _phase(replica), *_load(replica), minute, proved)
    return table


def _minute(traffic: Traffic | None) -> str:
    """`12 requests, 340 tok/s, 1 failed`"""
    if traffic is None:
        return "no requests"
    text = f"{traffic.requests} request{'s' if traffic.requests != 1 else ''}"
    if traffic.completion_tokens:
        text += f", {traffic.tokens_per_s:.3g} tok/s"
    if traffic.refused:
        text += f", {traffic.refused} refused"
    return f"{text}, {traffic.failed} failed" if traffic.failed else text


def _phase(replica: ReplicaView) -> str:
    return (
        f"{replica.phase} {replica.fraction:.0%}" if replica.fraction and replica.phase == "loading" else replica.phase
    )


def _load(replica: ReplicaView) -> tuple[str, str]:
    """Absent stays absent: an engine that does not say is not at zero."""
    running = "-" if replica.running_requests is None else f"{replica.running_requests:g}"
    return running, "-" if replica.kv_used_ratio is None else f"{replica.kv_used_ratio:.0%}"


def _proved(evidence: tuple[Evidence, ...]) -> str:
    """`19/19 for 7 d`"""
    if not evidence:
        return "not yet"
    now = time.time()
    green = sum(one.verdict == "green" and now < one.expires_at for one in evidence)
    left_s = expires_in_s(evidence, now) or 0.0
    return f"{green}/{len(evidence)} " + (f"for {ago(left_s)}" if left_s > 0 else "expired")


def _evidence(view: DeploymentView) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("check", "verdict", "claim", "measured", "age"):
        table.add_column(column)
    now = time.time()
    for one in view.evidence:
        verdict = Text("green", "green") if one.verdict == "green" else Text("red", "red")
        # It holds what a model answered.
        table.add_row(one.check, verdict, Text(one.claim), Text(visible(one.measured)), ago(now - one.at))
    return table


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
        say(as_called(f"{name} is starting again; modelyard status {name}"))
