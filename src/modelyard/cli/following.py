"""Watching a deployment go live: steps 5 to 7, told by control."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from rich.console import Console

from modelyard.cli.admin import Admin
from modelyard.cli.seven_steps import Current, SevenSteps
from modelyard.control.steps import Step
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.errors import CheckFailed, EngineFailed, NotRunning, UsageError

LOOK_EVERY_S = 0.1
# The gateway looks at the topology ten times a second: once we say that the route is open, it is.
GATEWAY_KNOWS_WITHIN_S = 0.25
WATCH_EVERY_S = 0.5


def go_live(admin: Admin, name: str, url: str, steps: SevenSteps, after_step: int) -> DeploymentView:
    """Wait until the route is open, telling what happens after step number `after_step`.

    Raises CheckFailed where verification is red, EngineFailed where no engine runs."""
    with steps.step("verification") as step:
        view, step.result = _until_decided(admin, name, step, steps, after_step)
    with steps.step("go-live") as step:
        time.sleep(GATEWAY_KNOWS_WITHIN_S)
        step.result = f"route open: {url}"
    with steps.step("operation") as step:
        count = f"{len(view.replicas)} replica{'s' if len(view.replicas) > 1 else ''}"
        step.result = f"watching {count}: health, token progress, restarts"
    return view


def _until_decided(admin: Admin, name: str, step: Current, steps: SevenSteps, told: int) -> tuple[DeploymentView, str]:
    """The deployment once its route is open, and how it was proved."""
    proved = "nothing changed: it was open already"
    while True:
        view = admin.get(f"/deployments/{name}?after_step={told}", DeploymentView)
        for news in view.steps:
            told = max(told, news.number)
            proved = news.text if news.kind == "proved" else proved
            _tell(news, step, steps)
        if view.open:
            return view, proved
        failed = [replica for replica in view.replicas if replica.phase == "failed"]
        if len(failed) == len(view.replicas):
            raise _why(failed[0])
        _show_load(view, step)
        time.sleep(LOOK_EVERY_S)


def _tell(news: Step, step: Current, steps: SevenSteps) -> None:
    if news.kind == "check":
        step.advance(f"{'✓' if news.ok else '✗'} {news.text}", None)
    # Of what failed in the end the error tells.
    if not news.ok and not news.text.startswith("failed: "):
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


def watch(admin: Admin, names: list[str], console: Console, as_json: bool, alive: Callable[[], bool]) -> None:
    """Tell what happens to deployments until interrupted, or until the yard is not `alive()` any more."""
    told = {name: _last_step(admin.get(f"/deployments/{name}", DeploymentView), 0) for name in names}
    while alive():
        time.sleep(WATCH_EVERY_S)
        for name in told:
            # It may have been removed by another command, or control may be starting.
            with contextlib.suppress(NotRunning, UsageError):
                view = admin.get(f"/deployments/{name}?after_step={told[name]}", DeploymentView)
                told[name] = _last_step(view, told[name])
                for news in view.steps:
                    if news.kind in ("replica", "route", "proved") and not as_json:
                        console.print(f"{_clock(news.at)}  {news.replica}: {news.text}", style="dim", markup=False)


def _last_step(view: DeploymentView, before: int) -> int:
    return max((news.number for news in view.steps), default=before)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
