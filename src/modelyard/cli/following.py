"""Watching a deployment go live: steps 5 to 7, told by control."""

from __future__ import annotations

import time
from collections.abc import Callable

from modelyard.cli.admin import Admin
from modelyard.cli.seven_steps import Current, SevenSteps
from modelyard.control.steps import Step
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.errors import CheckFailed, EngineFailed, NotRunning

LOOK_EVERY_S = 0.1


def go_live(admin: Admin, name: str, url: str, steps: SevenSteps) -> DeploymentView:
    """Wait until the route is open. Raises CheckFailed where verification is red, EngineFailed where no engine runs."""
    with steps.step("verification") as step:
        view = _until_decided(admin, name, step, steps)
        step.result = next((news.text for news in reversed(view.steps) if news.kind == "proved"), "green")
    with steps.step("go-live") as step:
        step.result = f"route open: {url}"
    with steps.step("operation") as step:
        count = f"{len(view.replicas)} replica{'s' if len(view.replicas) > 1 else ''}"
        step.result = f"watching {count}: health, token progress, restarts"
    return view


def _until_decided(admin: Admin, name: str, step: Current, steps: SevenSteps) -> DeploymentView:
    told = 0
    while True:
        view = admin.get(f"/deployments/{name}", DeploymentView)
        for news in view.steps:
            if news.number > told:
                told = news.number
                _tell(news, step, steps)
        if view.open:
            return view
        failed = [replica for replica in view.replicas if replica.phase == "failed"]
        if len(failed) == len(view.replicas):
            raise _why(failed[0])
        _show_load(view, step)
        time.sleep(LOOK_EVERY_S)


def _tell(news: Step, step: Current, steps: SevenSteps) -> None:
    if news.kind == "check":
        step.advance(f"{'✓' if news.ok else '✗'} {news.text}", None)
    if not news.ok:
        steps.note(f"{news.replica}: {news.text}")


def _show_load(view: DeploymentView, step: Current) -> None:
    loading = [replica for replica in view.replicas if replica.phase in ("spawned", "loading")]
    if loading:
        step.advance(f"{loading[0].name}: {loading[0].progress or 'starting'}", loading[0].fraction)


def _why(replica: ReplicaView) -> CheckFailed | EngineFailed:
    """The cause first; the log's last lines where the engine ended by itself."""
    if replica.cause.startswith("verification is red"):
        return CheckFailed(f"{replica.cause}; the route stays closed", hint=replica.fix)
    tail = "\n".join(f"    {line}" for line in replica.tail[-10:])
    return EngineFailed(f"{replica.name}: {replica.cause}" + (f"\n{tail}" if tail else ""), hint=replica.fix)


def watch(admin: Admin, name: str, steps: SevenSteps, alive: Callable[[], bool]) -> None:
    """Tell what happens to a deployment until interrupted; `alive()` says whether the yard still runs."""
    told = max((news.number for news in admin.get(f"/deployments/{name}", DeploymentView).steps), default=0)
    while alive():
        try:
            view = admin.get(f"/deployments/{name}?after_step={told}", DeploymentView)
        except NotRunning:
            continue
        for news in view.steps:
            told = max(told, news.number)
            if news.kind in ("replica", "route", "proved"):
                steps.note(f"{news.replica}: {news.text}")
        time.sleep(0.5)
