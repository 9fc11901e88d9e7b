"""What holds for every sequence of events, sensible or not."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelyard.engines.contract import Failure, Progress
from modelyard.node.life import (
    Adopted,
    BeginWarmup,
    Drained,
    Event,
    Exited,
    Health,
    KillNow,
    LifePolicy,
    ProbeAnswered,
    Progressed,
    ReplicaState,
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

POLICY = LifePolicy()
CRASHED = Failure(kind="crashed", cause="signal 11", fix="report it", permanent=False)
BAD_FLAG = Failure(kind="bad_config", cause="no such flag", fix="remove it", permanent=True)
failures = st.sampled_from([CRASHED, CRASHED, CRASHED, BAD_FLAG])
# Mostly the current launch, sometimes an older one.
ages = st.sampled_from([0, 0, 0, 0, 1])


class Life(RuleBasedStateMachine):
    """Feeds events and keeps its own books of what the effects did to the world."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = ReplicaState()
        self.alive: int | None = None
        self.routed = False
        self.wanted = False
        self.given_up = False
        self.wakes: set[float] = set()
        self.starts: list[float] = []
        self.told_to_end: set[int] = set()

    def feed(self, event: Event) -> None:
        # A launch's events can only come from one that lives, or from the past.
        if isinstance(event, Exited) and event.launch == self.alive:
            self.alive = None
        self.state, effects = transition(self.state, event, POLICY)
        for effect in effects:
            match effect:
                case Spawn(launch=launch):
                    assert self.alive is None, "two launches at once"
                    assert self.wanted, "started though it is not wanted"
                    assert not self.given_up, "started though it failed for good"
                    self.alive = launch
                    self.starts.append(self.now)
                case Route(launch=launch):
                    assert launch == self.alive
                    assert self.state.phase == "ready"
                    self.routed = True
                case Unroute(launch=launch):
                    assert launch == self.state.launch
                    self.routed = False
                case BeginWarmup(launch=launch):
                    assert launch == self.alive
                case Terminate(launch=launch) | KillNow(launch=launch):
                    assert launch == self.alive
                    self.told_to_end.add(launch)
                case ScheduleWake(at=at):
                    self.wakes.add(at)
                case _:
                    pass

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 6.0, 25.0, 130.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Ticked(at=self.now))

    @rule()
    def asked_to_start(self) -> None:
        self.wanted = True
        if self.state.phase in ("stopped", "failed"):
            self.given_up = False
            self.starts = []
        else:
            self.wanted = not self.state.stopping
        self.feed(StartAsked(at=self.now))

    @rule()
    def asked_to_stop(self) -> None:
        self.wanted = False
        self.feed(StopAsked(at=self.now))
        if self.alive is None:
            assert self.state.phase == "stopped"

    @precondition(lambda self: self.state.phase == "stopped")
    @rule(routed=st.booleans())
    def found(self, routed: bool) -> None:
        self.wanted, self.routed = True, routed
        self.given_up = False
        self.alive = self.state.launch + 3
        self.starts = [self.now]
        self.feed(Adopted(at=self.now, launch=self.alive, routed=routed))

    @rule(age=ages)
    def hello(self, age: int) -> None:
        self.feed(Started(at=self.now, launch=self.state.launch - age))

    @rule(age=ages, fraction=st.none() | st.floats(0, 1))
    def progress(self, age: int, fraction: float | None) -> None:
        progress = Progress(stage="weights", fraction=fraction)
        self.feed(Progressed(at=self.now, launch=self.state.launch - age, progress=progress))

    @rule(age=ages, health=st.sampled_from(["ok", "ok", "not_ok", "silent"]))
    def probed(self, age: int, health: Health) -> None:
        self.feed(ProbeAnswered(at=self.now, launch=self.state.launch - age, health=health))

    @rule(age=ages, running=st.sampled_from([None, 0.0, 1.0]), work=st.sampled_from([None, 1.0, 1.0, 2.0]))
    def metrics(self, age: int, running: float | None, work: float | None) -> None:
        self.feed(WorkSeen(at=self.now, launch=self.state.launch - age, running=running, work_done=work))

    @rule(age=ages)
    def warmed(self, age: int) -> None:
        self.feed(Warmed(at=self.now, launch=self.state.launch - age))

    @rule(age=ages, failure=failures)
    def warmup_failed(self, age: int, failure: Failure) -> None:
        self.feed(WarmupFailed(at=self.now, launch=self.state.launch - age, failure=failure))

    @rule(age=ages)
    def drained(self, age: int) -> None:
        self.feed(Drained(at=self.now, launch=self.state.launch - age))

    @rule(age=ages, failure=failures, jitter=st.floats(0, 1, exclude_max=True))
    def exited(self, age: int, failure: Failure, jitter: float) -> None:
        launch = self.state.launch - age
        counts = launch == self.alive
        final = (self.state.condemned or failure).permanent
        self.feed(Exited(at=self.now, launch=launch, failure=failure, tail=("x",), jitter=jitter))
        if counts and not self.wanted:
            assert self.state.phase == "stopped"
        elif counts and final:
            assert self.state.phase == "failed"
            assert self.state.tail == ("x",)
            self.given_up = True

    @precondition(lambda self: self.alive is not None)
    @rule(times=st.integers(1, 4))
    def crashes_at_once(self, times: int) -> None:
        """The shape of a crash loop, which single steps seldom make."""
        for _ in range(times):
            self.exited(0, CRASHED, 0.9)
            if self.state.phase == "backoff":
                self.now = self.state.deadline_at
                self.feed(Ticked(at=self.now))

    @invariant()
    def the_books_agree(self) -> None:
        assert self.state.alive == (self.alive is not None)
        assert self.state.routed == self.routed

    @invariant()
    def only_what_is_ready_is_routed(self) -> None:
        assert not self.routed or (self.state.phase == "ready" and self.alive is not None)

    @invariant()
    def starts_are_contained(self) -> None:
        for start in self.starts:
            assert len([other for other in self.starts if start <= other < start + 600.0]) <= 5

    @invariant()
    def nothing_waits_without_a_wake(self) -> None:
        draining = self.state.phase == "draining" and not self.state.terminated
        if draining or self.state.phase in ("spawned", "loading", "backoff"):
            assert self.state.deadline_at in self.wakes

    @invariant()
    def failed_and_stopped_are_dead(self) -> None:
        if self.state.phase in ("failed", "stopped", "backoff"):
            assert self.alive is None

    def teardown(self) -> None:
        """Whatever happened: who asks to stop gets there as soon as the process ends, and it is told to end."""
        self.asked_to_stop()
        self.now += POLICY.drain_timeout_s
        self.feed(Ticked(at=self.now))
        if self.alive is not None:
            assert self.alive in self.told_to_end
            self.feed(Exited(at=self.now, launch=self.alive, failure=CRASHED, tail=(), jitter=0.0))
        assert self.state.phase == "stopped"


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
