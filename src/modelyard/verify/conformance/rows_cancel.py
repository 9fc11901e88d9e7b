"""A client that leaves frees the engine, whatever it is at."""

from __future__ import annotations

from modelyard.verify.checks import Observation
from modelyard.verify.conformance.asking import Stream
from modelyard.verify.conformance.row import NotAsked, Row, Trial
from modelyard.verify.conformance.rows_metrics import prompt_tokens, shown
from modelyard.verify.conformance.subject import Subject

_BEGINS_WITHIN_S = 20.0
# Long enough behind the bound that an engine which only finishes shows itself.
_WATCHED_S = 10.0
_EVENTS_BEFORE_LEAVING = 4


async def _in_decode(trial: Trial) -> Observation:
    stream = trial.running.long_answer(trial.pace.answer_tokens)
    try:
        await _seen_running(trial, stream)
        await stream.reach(_EVENTS_BEFORE_LEAVING)
    finally:
        over = stream.is_over
        await stream.leave()
    if over:
        raise NotAsked(f"the answer was over after {len(stream.events)} events: nothing was left to cancel")
    return await _freed(trial, f"left after {len(stream.events)} events of at most {trial.pace.answer_tokens} tokens")


async def _in_prefill(trial: Trial) -> Observation:
    bound_s, tokens = trial.pace.cancelled_within_s, prompt_tokens(trial)
    if trial.prefill_s is not None and trial.prefill_s < bound_s:
        raise NotAsked(f"{tokens} tokens are read in {trial.prefill_s:.2f} s: there is no time to cancel in")
    stream = trial.running.long_prompt(f"Cancel, {trial.stand.launches[-1].number}:", tokens)
    try:
        await _seen_running(trial, stream)
    finally:
        over = stream.is_over
        await stream.leave()
    if over:
        raise NotAsked("the answer came before the client could leave")
    would_take = "" if trial.prefill_s is None else f", which take {trial.prefill_s:.1f} s"
    return await _freed(trial, f"left while {tokens} tokens were read{would_take}")


async def _seen_running(trial: Trial, stream: Stream) -> None:
    seen, _ = await trial.running.until(lambda now: bool(now.running) or stream.is_over, _BEGINS_WITHIN_S)
    if seen is None or not seen.running:
        raise NotAsked(f"the request was not seen to run ({shown(seen)}); see the row `metrics-load`")


async def _freed(trial: Trial, how: str) -> Observation:
    bound_s = trial.pace.cancelled_within_s
    seen, took_s = await trial.running.until(lambda now: now.running == 0 and not now.waiting, bound_s + _WATCHED_S)
    after = f"nothing runs after {took_s:.2f} s" if took_s is not None else f"still {shown(seen)}"
    in_time = took_s is not None and took_s <= bound_s
    return Observation(f"nothing runs within {bound_s:g} s", f"{how}: {after}", in_time)


def _cannot_be_seen(subject: Subject) -> str:
    claimed = subject.engine.capabilities.metrics
    return "" if "running" in claimed else "the engine does not claim to report running requests: it cannot be seen"


_ADVICE = "requests of clients that left go on at the expense of the others: choose another version or smaller steps"
CANCEL_ROWS = (
    Row(
        "cancel-decode",
        "a client that leaves in the middle of an answer frees the engine",
        "running requests are back at 0 within 1 s",
        _ADVICE,
        _in_decode,
        unclaimed=_cannot_be_seen,
    ),
    Row(
        "cancel-prefill",
        "a client that leaves while its prompt is read frees the engine",
        "running requests are back at 0 within 1 s, of a prompt of 4,000 tokens where the context allows",
        _ADVICE,
        _in_prefill,
        unclaimed=_cannot_be_seen,
    ),
)
