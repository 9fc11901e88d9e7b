"""From the launch to the first answer, and once more."""

from __future__ import annotations

from itertools import pairwise

from modelyard.engines.contract import Progress
from modelyard.verify.checks import Observation
from modelyard.verify.conformance.row import NotAsked, Row, Trial
from modelyard.verify.conformance.start import Start, watch_start
from modelyard.verify.conformance.subject import Subject

# The time to start is the plan's; these rows only must not be cut short.
_START_DEADLINE_S = 24 * 3600.0
_BEFORE = {"refused", "HTTP 503"}


async def _start(trial: Trial) -> Observation:
    launched = trial.stand.launch()
    trial.start = start = await watch_start(trial.subject, launched)
    if start.ready_s is None:
        trial.broken = f"the engine did not start: {start.because}"
    return Observation(_expected(trial.subject), _in_short(start), start.ready_s is not None)


def _expected(subject: Subject) -> str:
    within = f"ready within {subject.replica.startup_timeout_s:g} s"
    load = next((one for one in subject.plan.predictions if one.what == "load"), None)
    return within if load is None else f"{within}; {load.low:.1f} to {load.high:.1f} s expected"


def _in_short(start: Start) -> str:
    return start.because if start.ready_s is None else f"ready after {start.ready_s:.1f} s"


async def _progress(trial: Trial) -> Observation:
    told = _started(trial).progress
    return Observation(
        "told at least once, and it only rises",
        ", ".join(f"{one.stage} {'?' if one.fraction is None else f'{one.fraction:.2f}'}" for one in told) or "nothing",
        bool(told) and _only_rises(told),
    )


def _only_rises(told: tuple[Progress, ...]) -> bool:
    fractions = [one.fraction for one in told if one.fraction is not None]
    return all(0 <= one <= 1 for one in fractions) and all(one <= other for one, other in pairwise(fractions))


async def _ready(trial: Trial) -> Observation:
    start = _started(trial)
    return Observation(
        "before: refused or HTTP 503; after: the first question is answered",
        f"before: {', '.join(start.early) or 'not seen'}; after: {start.not_yet or start.answer or 'no answer'}",
        _BEFORE.issuperset(start.early) and not start.not_yet and start.answer is not None,
    )


async def _restart(trial: Trial) -> Observation:
    first = _started(trial)
    trial.again = again = await watch_start(trial.subject, trial.stand.launch())
    if again.answer is None:
        return Observation(str(first.answer), again.because, sound=False)
    same = again.answer == first.answer
    return Observation(str(first.answer), f"{again.answer} after {again.ready_s:.1f} s", same)


def _started(trial: Trial) -> Start:
    if trial.start is None or trial.start.ready_s is None:
        raise NotAsked(trial.broken)
    return trial.start


def _tells_no_progress(subject: Subject) -> str:
    return "" if subject.engine.capabilities.load_progress else "the engine does not claim to tell its progress"


START_ROWS = (
    Row(
        "start",
        "the engine starts and answers",
        "an answer before the time to start is over",
        "read the log's last lines",
        _start,
        deadline_s=_START_DEADLINE_S,
    ),
    Row(
        "progress",
        "it tells how far its load is",
        "at least one line of progress, fractions within 0..1 that never fall",
        "the engine's log lines changed: see the adapter's `read_progress`",
        _progress,
        unclaimed=_tells_no_progress,
    ),
    Row(
        "ready",
        "it is not ready before it answers",
        "questions before /health is well are refused or get 503; the first one after it is answered",
        "clients would be sent to an engine that cannot answer: name another health path in the adapter",
        _ready,
    ),
)
RESTART_ROW = Row(
    "restart",
    "the same launch gives the same engine",
    "ready again, and the same answer at temperature 0",
    "something of the first launch was left, or an effective setting is not pinned",
    _restart,
    deadline_s=_START_DEADLINE_S,
)
