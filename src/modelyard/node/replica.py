"""The life of a replica as a pure function: `transition(state, event, policy) -> (state, effects)`.

    stopped → spawned → loading → warming → ready → draining → stopped      (asked to start, asked to stop)
                  any of them → backoff → spawned …                         (it ended, and may be tried again)
                  any of them → failed                                      (it ended, and would end again)

Three kinds of probe are told apart. *Startup*: a deadline that moves while the load advances; silence is normal.
*Readiness*: /health with hysteresis opens and closes the route and does nothing else. *Progress*: a launch hangs when
requests run and no work is done, or when neither health nor metrics get any answer; only that is a reason to kill.
"""

from __future__ import annotations

from msgspec.structs import replace

from modelyard.engines.contract import Failure, Progress
from modelyard.node.life import (
    Adopted,
    BeginWarmup,
    Drained,
    Effect,
    Event,
    Exited,
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
    Work,
    WorkSeen,
)
from modelyard.node.restart import RestartHistory, StartAgain, after_failure, started

Outcome = tuple[ReplicaState, tuple[Effect, ...]]


def transition(state: ReplicaState, event: Event, policy: LifePolicy) -> Outcome:
    """What becomes of `state`, and what is to be done in this order. Never raises; an event that makes no sense in
    `state`, or belongs to another launch, changes nothing."""
    match event:
        case StartAsked(at=at):
            return _start_asked(state, at, policy)
        case StopAsked(at=at):
            return _stop_asked(state, at, policy)
        case Adopted():
            return _adopted(state, event, policy)
        case Ticked(at=at):
            return _ticked(state, at, policy)
        case _ if not state.alive or event.launch != state.launch:
            return state, ()
        case Started(at=at):
            return _started(state, at, policy)
        case Progressed(at=at, progress=progress):
            return _progressed(state, at, progress, policy)
        case ProbeAnswered():
            return _probe_answered(state, event, policy)
        case WorkSeen():
            return _work_seen(state, event, policy)
        case Warmed(at=at):
            return _warmed(state, at)
        case WarmupFailed():
            return _warmup_failed(state, event, policy)
        case Drained():
            return _terminate(state, policy) if state.phase == "draining" else (state, ())
        case Exited():
            return _exited(state, event, policy)


def _start_asked(state: ReplicaState, at: float, policy: LifePolicy) -> Outcome:
    if state.phase not in ("stopped", "failed"):
        return state, ()
    return _spawn(replace(state, history=RestartHistory()), at, policy)


def _spawn(state: ReplicaState, at: float, policy: LifePolicy) -> Outcome:
    deadline_at = at + policy.startup_timeout_s
    spawned = ReplicaState(
        phase="spawned",
        launch=state.launch + 1,
        alive=True,
        deadline_at=deadline_at,
        failure=state.failure,
        tail=state.tail,
        history=started(state.history, at, policy.restart),
    )
    return spawned, (Spawn(launch=spawned.launch), ScheduleWake(at=deadline_at))


def _adopted(state: ReplicaState, event: Adopted, policy: LifePolicy) -> Outcome:
    if state.alive or state.phase != "stopped":
        return state, ()
    deadline_at = event.at + policy.startup_timeout_s
    found = ReplicaState(
        phase="ready" if event.routed else "loading",
        launch=event.launch,
        alive=True,
        routed=event.routed,
        ready_at=event.at if event.routed else None,
        deadline_at=deadline_at,
        history=started(RestartHistory(), event.at, policy.restart),
    )
    return found, () if event.routed else (ScheduleWake(at=deadline_at),)


def _started(state: ReplicaState, at: float, policy: LifePolicy) -> Outcome:
    if state.phase == "spawned":
        deadline_at = at + policy.startup_timeout_s
        return replace(state, phase="loading", deadline_at=deadline_at), (ScheduleWake(at=deadline_at),)
    if state.terminated:
        # It was to end before there was anyone to tell.
        return state, (_end_of(state, policy),)
    return state, ()


def _progressed(state: ReplicaState, at: float, progress: Progress, policy: LifePolicy) -> Outcome:
    if state.phase != "loading" or not _is_further(progress, state.progress):
        return state, ()
    deadline_at = at + policy.startup_timeout_s
    return replace(state, progress=progress, deadline_at=deadline_at), (ScheduleWake(at=deadline_at),)


def _is_further(now: Progress, before: Progress | None) -> bool:
    if before is None or now.stage != before.stage:
        return True
    return now.fraction is not None and (before.fraction is None or now.fraction > before.fraction)


def _probe_answered(state: ReplicaState, event: ProbeAnswered, policy: LifePolicy) -> Outcome:
    if state.phase == "loading":
        if event.health != "ok":
            return state, ()
        return replace(state, phase="warming"), (BeginWarmup(launch=state.launch),)
    if state.phase not in ("warming", "ready"):
        return state, ()
    if event.health == "ok":
        return _route_if_ready(replace(state, misses=0, silent_since=None))
    since = (event.at if state.silent_since is None else state.silent_since) if event.health == "silent" else None
    missed = replace(state, misses=state.misses + 1, silent_since=since)
    if since is not None and event.at - since >= policy.hang_timeout_s and missed.misses >= policy.looks_to_hang:
        return _kill(missed, _hung(f"answers nothing for {event.at - since:.0f} s, neither health nor metrics"))
    if missed.routed and missed.misses >= policy.misses_to_unroute:
        why = Report(text=f"out of rotation: {missed.misses} health probes in a row failed")
        return replace(missed, routed=False), (Unroute(launch=state.launch), why)
    return missed, ()


def _work_seen(state: ReplicaState, event: WorkSeen, policy: LifePolicy) -> Outcome:
    if state.phase not in ("warming", "ready"):
        return state, ()
    state = replace(state, silent_since=None)
    if not event.running or event.work_done is None:
        return replace(state, work=None), ()
    if state.work is None or event.work_done != state.work.work_done:
        return replace(state, work=Work(work_done=event.work_done, since=event.at)), ()
    work = replace(state.work, looks=state.work.looks + 1)
    stood_s = event.at - work.since
    if stood_s >= policy.hang_timeout_s and work.looks >= policy.looks_to_hang:
        return _kill(state, _hung(f"{event.running:g} requests run and no token was processed for {stood_s:.0f} s"))
    return replace(state, work=work), ()


def _hung(what: str) -> Failure:
    fix = "it is restarted; if it comes again, lower the limits or report the engine's version and log"
    return Failure(kind="hung", cause=f"the engine hangs: {what}", fix=fix, permanent=False)


def _warmed(state: ReplicaState, at: float) -> Outcome:
    if state.phase != "warming":
        return state, ()
    return _route_if_ready(replace(state, phase="ready", ready_at=at))


def _route_if_ready(state: ReplicaState) -> Outcome:
    """One good answer opens the route (again); misses during a warm-up keep it closed until then."""
    if state.phase != "ready" or state.routed or state.misses:
        return state, ()
    return replace(state, routed=True), (Route(launch=state.launch), Report(text="ready"))


def _warmup_failed(state: ReplicaState, event: WarmupFailed, policy: LifePolicy) -> Outcome:
    if state.phase == "warming":
        return _terminate(replace(state, phase="draining", condemned=event.failure), policy)
    if state.phase == "ready":
        return _drain(replace(state, condemned=event.failure), event.at, policy)
    return state, ()


def _stop_asked(state: ReplicaState, at: float, policy: LifePolicy) -> Outcome:
    if not state.alive:
        return replace(state, phase="stopped", stopping=False), ()
    if state.phase == "draining":
        return _terminate(replace(state, stopping=True), policy)
    if state.phase != "ready":
        return _terminate(replace(state, phase="draining", stopping=True), policy)
    return _drain(replace(state, stopping=True), at, policy)


def _drain(state: ReplicaState, at: float, policy: LifePolicy) -> Outcome:
    deadline_at = at + policy.drain_timeout_s
    draining = replace(state, phase="draining", routed=False, deadline_at=deadline_at)
    return draining, (*_unroute(state), ScheduleWake(at=deadline_at))


def _terminate(state: ReplicaState, policy: LifePolicy) -> Outcome:
    if state.terminated:
        return state, ()
    ending = replace(state, terminated=True)
    return ending, (_end_of(ending, policy),)


def _kill(state: ReplicaState, failure: Failure) -> Outcome:
    condemned = replace(state, phase="draining", routed=False, terminated=True, condemned=failure)
    return condemned, (*_unroute(state), Report(text=failure.cause), KillNow(launch=state.launch))


def _end_of(state: ReplicaState, policy: LifePolicy) -> Effect:
    """How a launch that shall end is told so: what hangs or never started is not asked."""
    if state.condemned is not None and state.condemned.kind in ("hung", "start_timeout"):
        return KillNow(launch=state.launch)
    return Terminate(launch=state.launch, grace_s=policy.terminate_grace_s)


def _unroute(state: ReplicaState) -> tuple[Effect, ...]:
    return (Unroute(launch=state.launch),) if state.routed else ()


def _exited(state: ReplicaState, event: Exited, policy: LifePolicy) -> Outcome:
    ended = ReplicaState(launch=state.launch, history=state.history, failure=state.failure, tail=event.tail)
    if state.stopping:
        return ended, _unroute(state)
    failure = state.condemned or event.failure
    healthy_s = 0.0 if state.ready_at is None else event.at - state.ready_at
    ended = replace(ended, failure=failure)
    next_step = after_failure(state.history, failure, event.at, healthy_s, event.jitter, policy.restart)
    if isinstance(next_step, StartAgain):
        waiting = replace(ended, phase="backoff", deadline_at=next_step.at, history=next_step.history)
        why = Report(text=f"{failure.cause}; starts again in {next_step.at - event.at:.1f} s")
        return waiting, (*_unroute(state), why, ScheduleWake(at=next_step.at))
    given_up = replace(ended, phase="failed", failure=next_step.failure)
    return given_up, (*_unroute(state), Report(text=f"failed: {next_step.failure.cause}"))


def _ticked(state: ReplicaState, at: float, policy: LifePolicy) -> Outcome:
    if state.phase not in ("spawned", "loading", "draining", "backoff") or at < state.deadline_at:
        return state, ()
    if state.phase == "backoff":
        return _spawn(state, at, policy)
    if state.phase == "draining":
        return _terminate(state, policy)
    return _kill(state, _too_slow(state, policy))


def _too_slow(state: ReplicaState, policy: LifePolicy) -> Failure:
    where = f" (it was at: {state.progress.stage})" if state.progress else ""
    return Failure(
        kind="start_timeout",
        cause=f"the engine did not become ready: no progress for {policy.startup_timeout_s:g} s{where}",
        fix="raise startup_timeout_s if the model is large or the disk slow; the log's last lines say where it stood",
        permanent=False,
    )
