"""Watching a launch become ready: what it tells, how it takes questions too early, and its first answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from modelyard.engines.contract import Failure, Progress
from modelyard.node.probes import open_session, probe_health
from modelyard.verify.answers import Output, WrongAnswer
from modelyard.verify.checks import COUNT, MORE_TOKENS
from modelyard.verify.conformance.stand import Launched
from modelyard.verify.conformance.subject import Subject
from modelyard.verify.replica import CHAT, Replica, Unreachable, connect

_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Start:
    """`ready_s` is from the launch to the first answer, None where none came; `because` then says why.

    `early` are the ways in which questions were taken before /health was well; `not_yet` is what came in place of an
    answer after it was. `answer` is asked twice, so that it comes from the same cache at every start."""

    ready_s: float | None
    early: tuple[str, ...]
    not_yet: str
    answer: Output | None
    progress: tuple[Progress, ...]
    because: str


async def watch_start(subject: Subject, launched: Launched) -> Start:
    """Watch until it answers, ends, or its time to start is over."""
    loop = asyncio.get_running_loop()
    plan, early, not_yet = subject.replica, dict[str, None](), ""
    answer: Output | None = None
    deadline_at = launched.began_at + plan.startup_timeout_s
    async with (
        open_session(launched.spec) as session,
        connect(launched.spec.address, plan.served_name, plan.context_tokens) as replica,
    ):
        while answer is None and not launched.has_ended and loop.time() < deadline_at:
            if await probe_health(session, launched.spec) == "ok":
                try:
                    async with asyncio.timeout_at(deadline_at):
                        await replica.chat(COUNT, MORE_TOKENS)
                        answer = await replica.chat(COUNT, MORE_TOKENS)
                except (Unreachable, WrongAnswer) as error:
                    not_yet = not_yet or error.message
                except TimeoutError:
                    not_yet = not_yet or "/health is well, and no answer came"
            else:
                early[await _taken(replica, launched.spec.probes.health_timeout_s)] = None
            await asyncio.sleep(_LOOK_EVERY_S)
    ready_s = None if answer is None else loop.time() - launched.began_at
    # The last probe of health may have been a moment too early for what the question then met.
    ways = tuple(way for way in early if way != "HTTP 200")
    because = "" if answer is not None else why_not(launched, plan.startup_timeout_s, not_yet)
    return Start(ready_s, ways, not_yet, answer, tuple(launched.progress), because)


def why_not(launched: Launched, within_s: float, not_yet: str = "") -> str:
    """Why a launch did not become ready, in a line; `not_yet` is how it took questions meanwhile."""
    if launched.failure is None:
        return f"not ready within {within_s:g} s" + (f": {not_yet}" if not_yet else "")
    return f"it ended: {in_a_line(launched.failure)}"


def in_a_line(failure: Failure) -> str:
    lasting = "permanent" if failure.permanent else "may pass"
    return f"{failure.kind} ({lasting}): {failure.cause}; try: {failure.fix or 'nothing is said'}"


async def _taken(replica: Replica, within_s: float) -> str:
    """How a question is taken now."""
    body = {"model": replica.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    try:
        async with asyncio.timeout(within_s):
            return f"HTTP {(await replica.refusal(CHAT, msgspec.json.encode(body))).status}"
    except TimeoutError:
        return "no answer"
    except Unreachable:
        return "refused"
    except WrongAnswer:
        return "the connection broke"
