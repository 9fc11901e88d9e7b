"""A row of the kit, and how it is judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelyard.verify.answers import WrongAnswer
from modelyard.verify.checks import Check, Observation
from modelyard.verify.conformance.asking import Running
from modelyard.verify.conformance.record import Outcome, Verdict
from modelyard.verify.conformance.stand import Stand
from modelyard.verify.conformance.start import Start, in_a_line
from modelyard.verify.conformance.subject import Subject
from modelyard.verify.replica import Unreachable

DEADLINE_S = 60.0
# For what takes several thousand tokens, also on a machine that does other things.
LONG_DEADLINE_S = 300.0


class NotAsked(Exception):
    """The row can be neither proved nor refuted here; the message says why."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is asked, and how long is looked. `prompt_tokens` is the long prompt, `answer_tokens` the long answer;
    `idle_s` is how long the engine is watched doing nothing, `settles_s` what metrics may take to follow, and
    `cancelled_within_s` the bound for a client that left. A prefill of `long_prefill_s` must show work before it is
    over; an engine that neither ended nor answers `half_dead_s` after it lost a process is half dead."""

    prompt_tokens: int = 4000
    answer_tokens: int = 2000
    idle_s: float = 1.0
    settles_s: float = 10.0
    long_prefill_s: float = 2.0
    cancelled_within_s: float = 1.0
    half_dead_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a launch ended that was told to. `answer` is what became of its running request: done, cut, or over before
    (early); `killed` says that it had to be; `took_s` is from SIGTERM until nothing of it was left."""

    answer: str
    killed: bool
    took_s: float


@dataclass(slots=True)
class Trial:
    """What the rows share, and what earlier ones leave to later ones. `now` is the launch that answers; `broken` says
    why nothing more is to be asked of it; `prefill_s` is what the long prompt took."""

    subject: Subject
    stand: Stand
    pace: Pace
    start: Start | None = None
    again: Start | None = None
    now: Running | None = None
    broken: str = ""
    prefill_s: float | None = None
    ending: Ending | None = None

    @property
    def running(self) -> Running:
        """The launch that answers. Raises NotAsked where there is none any more."""
        if self.now is not None and not self.broken and self.now.launched.failure is not None:
            self.broken = f"the engine had ended: {in_a_line(self.now.launched.failure)}"
        if self.now is None or self.broken:
            raise NotAsked(self.broken or "no launch answers")
        return self.now


@dataclass(frozen=True, slots=True)
class Row:
    """One claim about an engine. `bound` says in words what green needs, `advice` what to try when it is red;
    `unclaimed` why it is not asked of an engine that does not promise it, empty where it does."""

    name: str
    claim: str
    bound: str
    advice: str
    run: Callable[[Trial], Awaitable[Observation]]
    unclaimed: Callable[[Subject], str] = lambda _: ""
    deadline_s: float = DEADLINE_S


def of_check(check: Check) -> Row:
    """A functional check of verification, asked of the running launch."""
    return Row(
        check.name,
        check.claim,
        check.bound,
        check.advice,
        lambda trial: check.run(trial.running.replica),
        unclaimed=lambda subject: check.unclaimed(subject.engine.capabilities),
    )


async def judge(row: Row, trial: Trial) -> Outcome:
    """Try `row`. Never raises for what the engine does."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    if reason := row.unclaimed(trial.subject):
        return _outcome(row, Observation("", reason, sound=False), 0.0, "not claimed")
    try:
        async with asyncio.timeout(row.deadline_s):
            observation = await row.run(trial)
    except NotAsked as reason:
        return _outcome(row, Observation("", str(reason), sound=False), loop.time() - began, "not asked")
    except TimeoutError:
        trial.broken = "an earlier row got no answer"
        observation = Observation("an answer", "no answer in time", sound=False)
    except (Unreachable, WrongAnswer) as error:
        observation = Observation("an answer in OpenAI's form", error.message, sound=False)
    return _outcome(row, observation, loop.time() - began, "green" if observation.sound else "red")


def _outcome(row: Row, seen: Observation, duration_s: float, verdict: Verdict) -> Outcome:
    return Outcome(
        row=row.name,
        claim=row.claim,
        bound=row.bound,
        predicted=seen.predicted,
        measured=seen.measured,
        verdict=verdict,
        duration_s=duration_s,
        advice=row.advice if verdict == "red" else "",
    )
