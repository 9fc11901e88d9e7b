"""The words of a replica's life: its state, what can happen to it, and what is then to be done. Values only.

Times (`at`) are monotonic seconds. Events of a launch carry its number, so that what an old launch still says changes
nothing for the new one.
"""

from __future__ import annotations

from typing import Literal

from modelyard.engines.contract import Failure, LaunchSpec, Progress
from modelyard.node.restart import RestartHistory, RestartPolicy
from modelyard.records.base import Record
from modelyard.records.plan import ReplicaPlan

Phase = Literal["spawned", "loading", "warming", "ready", "draining", "stopped", "backoff", "failed"]
Health = Literal["ok", "not_ok", "silent"]


class LifePolicy(Record):
    """The numbers that decide. `misses_to_unroute` probes in a row without an ok close the route, one ok opens it
    again; `looks_to_hang` is how many times no progress must have been seen, however long the time between."""

    startup_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    hang_timeout_s: float = 20.0
    terminate_grace_s: float = 5.0
    misses_to_unroute: int = 3
    looks_to_hang: int = 3
    restart: RestartPolicy = RestartPolicy()


def policy_of(plan: ReplicaPlan, launch: LaunchSpec) -> LifePolicy:
    return LifePolicy(
        startup_timeout_s=plan.startup_timeout_s,
        drain_timeout_s=plan.drain_timeout_s,
        hang_timeout_s=plan.hang_timeout_s,
        terminate_grace_s=launch.terminate_grace_s,
    )


class Work(Record):
    """Since when (`since`) and how many looks `work_done` has stood at the same value while requests were running."""

    work_done: float
    since: float
    looks: int = 1


class ReplicaState(Record):
    """A replica as control knows it. `alive`: the process of launch number `launch` may exist. `routed`: the gateway
    was told to use it. `deadline_at` is the end of the start (spawned, loading), of the drain (draining) or of the
    back-off. `condemned` is why a launch is being ended by us; `failure` is why the last one ended, with its `tail`."""

    phase: Phase = "stopped"
    launch: int = 0
    alive: bool = False
    routed: bool = False
    stopping: bool = False
    terminated: bool = False
    deadline_at: float = 0.0
    ready_at: float | None = None
    progress: Progress | None = None
    misses: int = 0
    silent_since: float | None = None
    work: Work | None = None
    condemned: Failure | None = None
    failure: Failure | None = None
    tail: tuple[str, ...] = ()
    history: RestartHistory = RestartHistory()


class StartAsked(Record, tag=True):
    """It is wanted: starts what is stopped, and what has failed (an operator's restart); else nothing."""

    at: float


class StopAsked(Record, tag=True):
    """It is no longer wanted: drain, then end. Asked again, the drain is cut short."""

    at: float


class Adopted(Record, tag=True):
    """A running launch that an earlier control started was found by its connection. `routed`: the topology that the
    gateway follows has it."""

    at: float
    launch: int
    routed: bool


class Started(Record, tag=True):
    """The shim of the launch said hello."""

    at: float
    launch: int


class Progressed(Record, tag=True):
    """The engine said how far its load is."""

    at: float
    launch: int
    progress: Progress


class ProbeAnswered(Record, tag=True):
    """One probe of /health came to an end: `silent` is no answer at all (refused, reset, too late)."""

    at: float
    launch: int
    health: Health


class WorkSeen(Record, tag=True):
    """The engine's metrics were read; None where it does not say."""

    at: float
    launch: int
    running: float | None
    work_done: float | None


class Warmed(Record, tag=True):
    """Warm-up and verification are green, or valid evidence made them needless."""

    at: float
    launch: int


class WarmupFailed(Record, tag=True):
    """Warm-up or verification is red: the launch ends, after a drain where it was serving. A permanent failure is
    final."""

    at: float
    launch: int
    failure: Failure


class Exited(Record, tag=True):
    """Nothing of the launch is left. `jitter` in [0, 1) was drawn for the back-off that may follow."""

    at: float
    launch: int
    failure: Failure
    tail: tuple[str, ...]
    jitter: float


class Drained(Record, tag=True):
    """No request is in flight on it any more."""

    at: float
    launch: int


class Ticked(Record, tag=True):
    """Time has passed; deadlines are looked at."""

    at: float


Event = (
    StartAsked
    | StopAsked
    | Adopted
    | Started
    | Progressed
    | ProbeAnswered
    | WorkSeen
    | Warmed
    | WarmupFailed
    | Exited
    | Drained
    | Ticked
)


class Spawn(Record, tag=True):
    """Start the shim of launch number `launch`."""

    launch: int


class BeginWarmup(Record, tag=True):
    """Warm up and verify; tell Warmed or WarmupFailed."""

    launch: int


class Route(Record, tag=True):
    """Publish the launch as one that takes requests."""

    launch: int


class Unroute(Record, tag=True):
    """Publish that it takes no new requests."""

    launch: int


class Terminate(Record, tag=True):
    """Ask the shim to end the engine; SIGKILL follows after `grace_s`."""

    launch: int
    grace_s: float


class KillNow(Record, tag=True):
    """Ask the shim to kill the engine."""

    launch: int


class ScheduleWake(Record, tag=True):
    """Tell Ticked at `at` (later is harmless)."""

    at: float


class Report(Record, tag=True):
    """Something that people who watch should read."""

    text: str


Effect = Spawn | BeginWarmup | Route | Unroute | Terminate | KillNow | ScheduleWake | Report
