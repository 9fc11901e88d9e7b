"""When an engine that ended is started again, and when no more: pure, all times monotonic seconds."""

from __future__ import annotations

from modelyard.engines.contract import Failure
from modelyard.records.base import Record


class RestartPolicy(Record):
    """Back-off doubles from `base_s` up to `cap_s` with full jitter, and begins anew after `healthy_s` of serving.
    `max_starts` starts within `window_s` are a crash loop."""

    base_s: float = 0.5
    cap_s: float = 60.0
    healthy_s: float = 600.0
    max_starts: int = 5
    window_s: float = 600.0


class RestartHistory(Record):
    """`starts`: when the launches of the last window began. `failures`: how many ended in a row, none of them healthy
    for long."""

    starts: tuple[float, ...] = ()
    failures: int = 0


class StartAgain(Record, tag=True):
    """Start at `at`, not before."""

    at: float
    history: RestartHistory


class GiveUp(Record, tag=True):
    """Never by itself again; an operator may. `failure` says why."""

    failure: Failure


def started(history: RestartHistory, at: float, policy: RestartPolicy) -> RestartHistory:
    """The history with one more start at `at`; starts that left the window are forgotten."""
    recent = _recent(history, at, policy)
    return RestartHistory(starts=(*recent, at), failures=history.failures)


def after_failure(
    history: RestartHistory, failure: Failure, at: float, healthy_s: float, jitter: float, policy: RestartPolicy
) -> StartAgain | GiveUp:
    """What to do when a launch ended at `at` with `failure`, having served for `healthy_s`; `jitter` is in [0, 1)."""
    if failure.permanent:
        return GiveUp(failure=failure)
    starts = _recent(history, at, policy)
    if len(starts) >= policy.max_starts:
        return GiveUp(failure=_crash_loop(failure, policy))
    before = 0 if healthy_s >= policy.healthy_s else history.failures
    return StartAgain(
        at=at + delay_s(before, jitter, policy),
        history=RestartHistory(starts=starts, failures=before + 1),
    )


def delay_s(failures: int, jitter: float, policy: RestartPolicy) -> float:
    """Full jitter: uniform over 0 .. min(cap, base * 2^failures), so that what fell together does not rise together
    (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015)."""
    # 2.0**1024 overflows; the cap is reached long before.
    return jitter * min(policy.cap_s, policy.base_s * 2.0 ** min(failures, 64))


def _recent(history: RestartHistory, at: float, policy: RestartPolicy) -> tuple[float, ...]:
    return tuple(start for start in history.starts if at - start < policy.window_s)


def _crash_loop(failure: Failure, policy: RestartPolicy) -> Failure:
    return Failure(
        kind=failure.kind,
        cause=f"crash loop: {policy.max_starts} starts in {policy.window_s / 60:g} min; the last one: {failure.cause}",
        fix=failure.fix,
        permanent=True,
    )
