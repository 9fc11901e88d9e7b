"""How an engine ends: told to, killed, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

from modelyard.engines.contract import Failure
from modelyard.verify.answers import WrongAnswer
from modelyard.verify.checks import COUNT, FEW_TOKENS, Observation
from modelyard.verify.conformance.asking import Running
from modelyard.verify.conformance.processes import Process, is_alive
from modelyard.verify.conformance.row import Ending, NotAsked, Row, Trial
from modelyard.verify.conformance.start import in_a_line
from modelyard.verify.replica import Unreachable

_AN_ANSWER_WITHIN_S = 5.0
# Of an engine that finishes what it has: long enough to be under way, short enough for its grace.
_DRAINED_TOKENS = 48


async def _terminate(trial: Trial) -> Observation:
    """With a request running, as after a drain that took too long."""
    running, loop = trial.running, asyncio.get_running_loop()
    grace_s = running.launched.spec.terminate_grace_s
    drains = trial.subject.engine.capabilities.drains_on_terminate
    stream = running.long_answer(_DRAINED_TOKENS if drains else trial.pace.answer_tokens)
    await stream.reach(1)
    await running.launched.processes()
    began_at, early = loop.time(), stream.is_over
    await running.launched.stop(grace_s)
    exited = await running.launched.ended()
    took_s = loop.time() - began_at
    await stream.over()
    trial.ending = Ending("early" if early else stream.ended, exited.report.signal == signal.SIGKILL, took_s)
    code, number = exited.report.code, exited.report.signal
    how = f"exit code {code}" if number is None else signal.Signals(number).name
    return Observation(
        f"it ends by itself within {grace_s:g} s of SIGTERM",
        f"{how} after {took_s:.1f} s",
        not trial.ending.killed and took_s <= grace_s,
    )


async def _drain(trial: Trial) -> Observation:
    if trial.ending is None:
        raise NotAsked(trial.broken or "no launch was told to end")
    if trial.ending.answer == "early":
        raise NotAsked("no request was running any more when it was told to end")
    drains, finished = trial.subject.engine.capabilities.drains_on_terminate, trial.ending.answer == "done"
    return Observation(_claim(finishes=drains), _claim(finishes=finished), finished == drains)


def _claim(*, finishes: bool) -> str:
    return "a running answer is finished" if finishes else "a running answer is cut, without [DONE]"


async def _kill(trial: Trial, number: int, victim: Process, is_leader: bool) -> Observation:
    running = trial.running
    await running.launched.processes()
    stream = running.long_answer(trial.pace.answer_tokens)
    try:
        await stream.reach(1)
        _kill_now(victim)
        lives_on = await _ended_or_answering(trial, running)
    finally:
        await stream.leave()
    predicted = "it ends, told as killed, to be started again"
    if not is_leader:
        predicted = "it ends, told as killed or crashed, to be started again; or it answers without that process"
    failure = running.launched.failure
    if failure is None:
        measured = (
            "it answers without it" if lives_on else f"half dead: no end, no answer in {trial.pace.half_dead_s:g} s"
        )
        return Observation(predicted, measured, lives_on and not is_leader)
    sound = _is_told_apart(failure, is_leader) and not stream.whole
    return Observation(predicted, in_a_line(failure) + ("; the cut answer looked whole" if stream.whole else ""), sound)


def _is_told_apart(failure: Failure, is_leader: bool) -> bool:
    return not failure.permanent and failure.kind in (("killed",) if is_leader else ("killed", "crashed"))


def _kill_now(victim: Process) -> None:
    """By a descriptor, which is looked at once more: a number alone may be somebody else's by now."""
    try:
        descriptor = os.pidfd_open(victim.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(victim):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


async def _ended_or_answering(trial: Trial, running: Running) -> bool:
    """Wait until the engine has ended (False), or answers all the same (True); False too where neither comes."""
    loop = asyncio.get_running_loop()
    until = loop.time() + trial.pace.half_dead_s
    while loop.time() < until:
        # An end that the loss brings about needs a moment to be seen.
        await asyncio.wait({running.launched.exited}, timeout=1.0)
        if running.launched.has_ended:
            return False
        try:
            async with asyncio.timeout(_AN_ANSWER_WITHIN_S):
                await running.replica.chat(COUNT, FEW_TOKENS)
        except (TimeoutError, Unreachable, WrongAnswer):
            continue
        return True
    return False


async def _nothing_left(trial: Trial) -> Observation:
    launches = trial.stand.launches
    found = [f"launch {one.number}: {what}" for one in launches if one.has_ended for what in await one.leftovers()]
    return Observation(
        "no process, no socket, no file of any launch",
        "; ".join(found) or f"nothing of {len(launches)} launches",
        not found,
    )


def kill_row(number: int, count: int, victim: Process, *, is_leader: bool) -> Row:
    """SIGKILL of process `number` (from 1) of the `count` that the engine consists of."""
    return Row(
        f"kill-{number}",
        f"SIGKILL of process {number} of {count} ({victim}) is noticed and told apart",
        "the engine ends at once as killed, nothing of it left, and may be started again; or it goes on answering",
        "an engine that is half dead serves nobody: end the group when this process ends; see `explain_failure`",
        partial(_kill, number=number, victim=victim, is_leader=is_leader),
    )


ENDING_ROWS = (
    Row(
        "terminate",
        "SIGTERM ends it",
        "the whole group is gone within its grace, without SIGKILL",
        "raise terminate_grace_s in the adapter, or find what keeps the engine",
        _terminate,
    ),
    Row(
        "drain",
        "what it claims about running requests at SIGTERM is what happens",
        "finished where drains_on_terminate is claimed, cut without [DONE] where it is not",
        "correct drains_on_terminate in the adapter's capabilities",
        _drain,
    ),
)
NOTHING_LEFT_ROW = Row(
    "nothing-left",
    "nothing is left of any launch",
    "no process, socket, file or shim, however the launch ended",
    "the engine writes into its own folder, or starts something that outlives it",
    _nothing_left,
)
