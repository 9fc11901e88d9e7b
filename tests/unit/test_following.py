"""Watching a deployment go live, as a scripted control tells it; and how the seven steps are printed."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from modelyard.cli import following
from modelyard.cli.seven_steps import STEPS, SevenSteps
from modelyard.control.steps import Step
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.errors import CheckFailed, EngineFailed, NotRunning

REPLICA = ReplicaView(
    name="small-0",
    phase="loading",
    engine="fake",
    launch="7",
    routed=False,
    progress="weights",
    fraction=0.5,
    cause="",
    fix="",
    permanent=False,
    tail=(),
    running_requests=None,
    kv_used_ratio=None,
)


def view(*steps: Step, replicas: tuple[ReplicaView, ...] = (REPLICA,), is_open: bool = False) -> DeploymentView:
    return DeploymentView(
        name="small",
        open=is_open,
        model="m",
        artifact_sha256="0" * 64,
        context_tokens=1,
        replicas=replicas,
        evidence=(),
        steps=steps,
    )


def step(number: int, kind: str, text: str, *, ok: bool = True) -> Step:
    return Step(number=number, at=0.0, kind=kind, text=text, replica="small-0", ok=ok)


def changed(**changes: object) -> ReplicaView:
    return msgspec.structs.replace(REPLICA, **changes)


class ScriptedAdmin:
    """Answers with one view after the other; the last one stays. An exception in the script is raised."""

    def __init__(self, *views: DeploymentView | Exception) -> None:
        self.views = list(views)
        self.paths: list[str] = []

    def get(self, path: str, kind: type[Any]) -> Any:
        self.paths.append(path)
        now = self.views.pop(0) if len(self.views) > 1 else self.views[0]
        if isinstance(now, Exception):
            raise now
        return now


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(following, "WATCH_EVERY_S", 0.0)


def go_live(admin: Any, *, as_json: bool = False, terminal: bool = False) -> tuple[SevenSteps, str]:
    out = io.StringIO()
    steps = SevenSteps("small", Console(file=out, force_terminal=terminal, width=80, emoji=False), as_json)
    try:
        following.go_live(admin, "small", "http://here/v1", steps, 10)
    finally:
        steps.console.file.flush()
    return steps, out.getvalue()


def test_a_deployment_that_goes_live_is_told_in_three_steps() -> None:
    admin = ScriptedAdmin(
        view(step(11, "launch", "the engine is starting")),
        view(step(12, "check", "chat: answered"), step(13, "proved", "12 of 12 checks green")),
        view(replicas=(changed(phase="ready", routed=True),), is_open=True),
    )
    steps, out = go_live(admin)
    assert [(one.step, one.ok) for one in steps.done] == [
        ("verification", True),
        ("go-live", True),
        ("operation", True),
    ]
    assert steps.done[0].result == "12 of 12 checks green"
    assert admin.paths == [f"/deployments/small?after_step={number}" for number in (10, 11, 13)]
    lines = out.splitlines()
    assert lines[0].startswith("✓ 5/7 verification  12 of 12 checks green")
    assert "\x1b" not in out


def test_old_news_are_not_told_again() -> None:
    steps, _ = go_live(ScriptedAdmin(view(is_open=True)))
    assert steps.done[0].result == "nothing changed: it was open already"


def test_a_crash_on_the_way_is_worth_a_line() -> None:
    admin = ScriptedAdmin(
        view(step(11, "replica", "exit code 1: the device went away; starts again in 0.3 s", ok=False)),
        view(step(12, "proved", "12 of 12 checks green"), is_open=True),
    )
    _, out = go_live(admin)
    assert "small-0: exit code 1: the device went away; starts again in 0.3 s" in out


def test_red_is_an_error_with_what_to_try() -> None:
    failed = changed(phase="failed", cause="verification is red: chat", fix="chat: not proved\n  try: another")
    with pytest.raises(CheckFailed, match="verification is red: chat; the route stays closed") as raised:
        go_live(ScriptedAdmin(view(replicas=(failed,))))
    assert raised.value.hint == "chat: not proved\n  try: another"


def test_an_engine_that_failed_is_an_error_with_its_last_words() -> None:
    failed = changed(phase="failed", cause="does not fit", fix="buy memory", tail=tuple(f"l{n}" for n in range(50)))
    with pytest.raises(EngineFailed) as raised:
        go_live(ScriptedAdmin(view(replicas=(failed,))))
    assert raised.value.message.splitlines() == ["small-0: does not fit", *(f"    l{n}" for n in range(40, 50))]
    assert raised.value.hint == "buy memory"


def test_one_failed_replica_of_two_is_waited_for() -> None:
    failed = changed(phase="failed", cause="broken")
    admin = ScriptedAdmin(
        view(replicas=(failed, changed(name="small-1"))),
        view(replicas=(failed, changed(name="small-1", phase="ready", routed=True)), is_open=True),
    )
    go_live(admin)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    go_live(ScriptedAdmin(view(step(11, "proved", "green"), is_open=True)), as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["step"] for one in told] == list(STEPS[4:])
    assert told[0] == {
        "event": "step",
        "deployment": "small",
        "step": "verification",
        "result": "green",
        "ok": True,
        "seconds": told[0]["seconds"],
    }


def test_a_bar_moves_only_on_a_terminal() -> None:
    views = (view(), view(step(11, "check", "chat: answered")), view(is_open=True))
    assert "weights" not in go_live(ScriptedAdmin(*views))[1]
    shown = go_live(ScriptedAdmin(*views), terminal=True)[1]
    assert "small-0: weights" in shown or "chat: answered" in shown


def test_a_step_that_fails_says_so_in_one_line() -> None:
    out = io.StringIO()
    steps = SevenSteps("small", Console(file=out, width=80), as_json=False)
    with pytest.raises(ValueError), steps.step("model"):
        raise ValueError("first line\nsecond [line]")
    with pytest.raises(KeyboardInterrupt), steps.step("framework"):
        raise KeyboardInterrupt
    assert [one.ok for one in steps.done] == [False, False]
    first, second = out.getvalue().splitlines()
    assert first.startswith("✗ 2/7 model") and "first line" in first and "second" not in first
    assert "interrupted" in second


def test_watching_tells_news_once_and_outlives_a_control_that_starts_anew() -> None:
    out = io.StringIO()
    admin = ScriptedAdmin(
        view(step(5, "proved", "old")),
        view(step(6, "replica", "out of rotation", ok=False), step(7, "check", "of no interest")),
        NotRunning("control does not answer"),
        view(step(8, "route", "the route is open")),
    )
    looks = iter([True, True, True, False])
    following.watch(admin, ["small"], Console(file=out, width=200), False, lambda: next(looks))  # type: ignore[arg-type]
    told = [line.split("  ", 1)[1] for line in out.getvalue().splitlines()]
    assert told == ["small-0: out of rotation", "small-0: the route is open"]
    assert admin.paths[1:] == [f"/deployments/small?after_step={number}" for number in (5, 7, 7)]
