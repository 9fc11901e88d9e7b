"""The life of a replica, told event by event."""

from __future__ import annotations

import pytest

from modelyard.engines.contract import Failure, Progress
from modelyard.node.life import (
    Adopted,
    BeginWarmup,
    Drained,
    Effect,
    Event,
    Exited,
    Health,
    KillNow,
    LifePolicy,
    ProbeAnswered,
    Progressed,
    ReplicaState,
    Report,
    Route,
    ScheduleWake,
    Spawn,
    StartAsked,
    Started,
    StopAsked,
    Terminate,
    Ticked,
    Unroute,
    Warmed,
    WarmupFailed,
    WorkSeen,
)
from modelyard.node.replica import transition

POLICY = LifePolicy(startup_timeout_s=100.0, drain_timeout_s=30.0, hang_timeout_s=20.0)
CRASHED = Failure(kind="crashed", cause="signal 11", fix="report it", permanent=False)
BAD_FLAG = Failure(kind="bad_config", cause="no such flag", fix="remove it", permanent=True)


class Story:
    """A replica and everything that it asked for, reports left out."""

    def __init__(self, state: ReplicaState | None = None) -> None:
        self.state = state or ReplicaState()
        self.reports: list[str] = []

    def tell(self, event: Event) -> list[Effect]:
        self.state, effects = transition(self.state, event, POLICY)
        self.reports += [effect.text for effect in effects if isinstance(effect, Report)]
        return [effect for effect in effects if not isinstance(effect, Report)]

    def probe(self, at: float, health: Health) -> list[Effect]:
        return self.tell(ProbeAnswered(at=at, launch=self.state.launch, health=health))

    def work(self, at: float, running: float | None, work_done: float | None) -> list[Effect]:
        return self.tell(WorkSeen(at=at, launch=self.state.launch, running=running, work_done=work_done))

    def exit(self, at: float, failure: Failure = CRASHED, jitter: float = 1.0) -> list[Effect]:
        return self.tell(Exited(at=at, launch=self.state.launch, failure=failure, tail=("last words",), jitter=jitter))


def loading() -> Story:
    story = Story()
    story.tell(StartAsked(at=0.0))
    story.tell(Started(at=1.0, launch=1))
    return story


def ready() -> Story:
    story = loading()
    story.probe(2.0, "ok")
    story.tell(Warmed(at=3.0, launch=1))
    assert story.state.phase == "ready"
    return story


def test_a_replica_goes_from_asked_to_routed() -> None:
    story = Story()
    assert story.tell(StartAsked(at=0.0)) == [Spawn(launch=1), ScheduleWake(at=100.0)]
    assert story.tell(Started(at=1.0, launch=1)) == [ScheduleWake(at=101.0)]
    assert story.probe(2.0, "ok") == [BeginWarmup(launch=1)]
    assert story.tell(Warmed(at=3.0, launch=1)) == [Route(launch=1)]
    assert (story.state.phase, story.state.routed) == ("ready", True)


def test_silence_while_loading_is_normal() -> None:
    story = loading()
    for at in range(2, 90):
        assert story.probe(float(at), "silent") == []
    assert story.state.phase == "loading"


def test_a_start_without_progress_ends_at_its_deadline_by_a_kill() -> None:
    story = loading()
    assert story.tell(Ticked(at=100.9)) == []
    assert story.tell(Ticked(at=101.0)) == [KillNow(launch=1)]
    assert story.exit(102.0)[0] == ScheduleWake(at=102.5)
    assert story.state.failure is not None
    assert story.state.failure.kind == "start_timeout"


def test_a_load_that_advances_moves_the_deadline_and_one_that_stands_does_not() -> None:
    story = loading()
    half = Progress(stage="weights", fraction=0.5)
    assert story.tell(Progressed(at=90.0, launch=1, progress=half)) == [ScheduleWake(at=190.0)]
    assert story.tell(Progressed(at=150.0, launch=1, progress=half)) == []
    assert story.tell(Progressed(at=151.0, launch=1, progress=Progress(stage="weights", fraction=0.4))) == []
    assert story.tell(Ticked(at=189.0)) == []
    assert story.tell(Ticked(at=190.0)) == [KillNow(launch=1)]
    assert story.state.condemned is not None
    assert "it was at: weights" in story.state.condemned.cause


def test_three_misses_close_the_route_and_one_ok_opens_it_again() -> None:
    story = ready()
    assert [story.probe(at, "not_ok") for at in (4.0, 5.0, 6.0)] == [[], [], [Unroute(launch=1)]]
    assert story.probe(7.0, "not_ok") == []
    assert story.probe(8.0, "ok") == [Route(launch=1)]


def test_an_ok_between_misses_begins_the_count_anew() -> None:
    story = ready()
    for at, health in enumerate(("not_ok", "silent", "ok", "not_ok", "not_ok"), start=4):
        assert story.probe(float(at), health) == []
    assert story.state.routed


def test_a_route_does_not_open_after_warmup_while_health_is_bad() -> None:
    story = loading()
    story.probe(2.0, "ok")
    story.probe(3.0, "not_ok")
    assert story.tell(Warmed(at=4.0, launch=1)) == []
    assert story.probe(5.0, "ok") == [Route(launch=1)]


def test_a_hang_behind_a_healthy_health_is_killed_and_restarted() -> None:
    story = ready()
    assert story.work(10.0, 1.0, 500.0) == []
    for at in range(11, 30):
        assert story.probe(float(at), "ok") == []
        assert story.work(float(at), 1.0, 500.0) == []
    assert story.work(30.0, 1.0, 500.0) == [Unroute(launch=1), KillNow(launch=1)]
    assert story.exit(31.0, jitter=0.5) == [ScheduleWake(at=31.25)]
    assert story.state.failure is not None
    assert story.state.failure.kind == "hung"
    assert story.tell(Ticked(at=31.25))[0] == Spawn(launch=2)


def test_a_long_prefill_that_advances_is_no_hang() -> None:
    story = ready()
    for at in range(10, 200, 15):
        assert story.work(float(at), 1.0, float(at)) == []
    assert story.state.routed


def test_an_idle_engine_does_no_work_and_does_not_hang() -> None:
    story = ready()
    for at in range(10, 200):
        assert story.work(float(at), 0.0, 500.0) == []


@pytest.mark.parametrize(("running", "work_done"), [(None, 500.0), (1.0, None), (None, None)])
def test_what_an_engine_does_not_say_is_no_sign_of_a_hang(running: float | None, work_done: float | None) -> None:
    story = ready()
    for at in range(10, 200):
        assert story.work(float(at), running, work_done) == []


def test_one_late_look_after_a_stall_of_ours_is_no_hang() -> None:
    story = ready()
    story.work(10.0, 1.0, 500.0)
    assert story.work(500.0, 1.0, 500.0) == []
    assert story.work(501.0, 1.0, 501.0) == []


def test_bad_health_alone_never_kills() -> None:
    story = ready()
    effects = [effect for at in range(4, 1000) for effect in story.probe(float(at), "not_ok")]
    assert effects == [Unroute(launch=1)]


def test_silent_health_does_not_kill_while_metrics_answer() -> None:
    story = ready()
    for at in range(4, 1000):
        assert KillNow(launch=1) not in story.probe(float(at), "silent")
        story.work(float(at), 1.0, float(at))


def test_an_engine_that_answers_nothing_at_all_is_killed() -> None:
    story = ready()
    effects = [effect for at in range(10, 31, 5) for effect in story.probe(float(at), "silent")]
    assert effects == [Unroute(launch=1), KillNow(launch=1)]


def test_a_permanent_failure_keeps_cause_and_log_and_starts_nothing() -> None:
    story = loading()
    assert story.exit(2.0, BAD_FLAG) == []
    assert (story.state.phase, story.state.failure, story.state.tail) == ("failed", BAD_FLAG, ("last words",))
    assert story.tell(Ticked(at=1e6)) == []
    assert story.reports[-1] == "failed: no such flag"


def test_an_operator_s_start_clears_failed() -> None:
    story = loading()
    story.exit(2.0, BAD_FLAG)
    assert story.tell(StartAsked(at=3.0))[0] == Spawn(launch=2)
    assert story.state.phase == "spawned"


def test_the_fifth_crash_in_ten_minutes_is_the_last() -> None:
    story = Story()
    spawned = len([e for e in story.tell(StartAsked(at=0.0)) if isinstance(e, Spawn)])
    at = 0.0
    while story.state.phase != "failed":
        story.exit(at + 0.1, jitter=0.9)
        at = story.state.deadline_at
        spawned += len([e for e in story.tell(Ticked(at=at)) if isinstance(e, Spawn)])
    assert spawned == 5
    assert story.state.failure is not None
    assert story.state.failure.cause == "crash loop: 5 starts in 10 min; the last one: signal 11"


def test_a_stop_drains_then_terminates_then_is_stopped() -> None:
    story = ready()
    assert story.tell(StopAsked(at=10.0)) == [Unroute(launch=1), ScheduleWake(at=40.0)]
    assert story.tell(Drained(at=12.0, launch=1)) == [Terminate(launch=1, grace_s=5.0)]
    assert story.tell(Ticked(at=40.0)) == []
    assert story.exit(13.0) == []
    assert (story.state.phase, story.state.failure) == ("stopped", None)


def test_a_drain_ends_at_its_deadline_or_when_asked_twice() -> None:
    patient, hurried = ready(), ready()
    patient.tell(StopAsked(at=10.0))
    assert patient.tell(Ticked(at=40.0)) == [Terminate(launch=1, grace_s=5.0)]
    hurried.tell(StopAsked(at=10.0))
    assert hurried.tell(StopAsked(at=11.0)) == [Terminate(launch=1, grace_s=5.0)]


def test_a_stop_before_the_shim_said_hello_is_told_to_it_then() -> None:
    story = Story()
    story.tell(StartAsked(at=0.0))
    assert story.tell(StopAsked(at=0.1)) == [Terminate(launch=1, grace_s=5.0)]
    assert story.tell(Started(at=0.2, launch=1)) == [Terminate(launch=1, grace_s=5.0)]


def test_a_stop_during_backoff_stops_at_once() -> None:
    story = loading()
    story.exit(2.0)
    assert story.state.phase == "backoff"
    assert story.tell(StopAsked(at=2.1)) == []
    assert story.tell(Ticked(at=100.0)) == []
    assert story.state.phase == "stopped"


def test_a_red_verification_ends_the_engine_and_its_cause_is_kept() -> None:
    red = Failure(kind="model", cause="verification: 3 of 8 probes are wrong", fix="see the evidence", permanent=True)
    story = loading()
    story.probe(2.0, "ok")
    assert story.tell(WarmupFailed(at=3.0, launch=1, failure=red)) == [Terminate(launch=1, grace_s=5.0)]
    story.exit(4.0)
    assert (story.state.phase, story.state.failure) == ("failed", red)


def test_what_an_old_launch_still_says_changes_nothing() -> None:
    story = ready()
    story.exit(4.0)
    story.tell(Ticked(at=5.0))
    before = story.state
    assert before.launch == 2
    for event in (
        Started(at=6.0, launch=1),
        ProbeAnswered(at=6.0, launch=1, health="ok"),
        Warmed(at=6.0, launch=1),
        Exited(at=6.0, launch=1, failure=CRASHED, tail=(), jitter=0.0),
    ):
        assert story.tell(event) == []
    assert story.state == before


def test_an_adopted_replica_that_was_routed_stays_so() -> None:
    story = Story()
    assert story.tell(Adopted(at=5.0, launch=7, routed=True)) == []
    assert (story.state.phase, story.state.routed, story.state.launch) == ("ready", True, 7)
    story.exit(6.0)
    assert story.tell(Ticked(at=7.0))[0] == Spawn(launch=8)


def test_an_adopted_replica_that_was_not_routed_is_verified_first() -> None:
    story = Story()
    assert story.tell(Adopted(at=5.0, launch=7, routed=False)) == [ScheduleWake(at=105.0)]
    assert story.probe(6.0, "ok") == [BeginWarmup(launch=7)]


def test_a_serving_replica_that_is_refuted_drains_and_stays_closed() -> None:
    red = Failure(kind="unproved", cause="verification is red: knowledge-1", fix="see the evidence", permanent=True)
    story = ready()
    assert story.tell(WarmupFailed(at=10.0, launch=1, failure=red)) == [Unroute(launch=1), ScheduleWake(at=40.0)]
    assert story.tell(ProbeAnswered(at=11.0, launch=1, health="ok")) == []
    assert story.tell(Drained(at=12.0, launch=1)) == [Terminate(launch=1, grace_s=5.0)]
    story.exit(13.0)
    assert (story.state.phase, story.state.failure) == ("failed", red)
