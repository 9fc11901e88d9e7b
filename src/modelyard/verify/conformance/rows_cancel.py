"""A client that leaves frees the engine, whatever it is at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from modelyard.verify.checks import Observation
from modelyard.verify.conformance.asking import Stream
from modelyard.verify.conformance.row import LONG_DEADLINE_S, NotAsked, Row, Trial
from modelyard.verify.conformance.rows_metrics import prompt_tokens, shown
from modelyard.verify.conformance.subject import Subject

_BEGINS_WITHIN_S = 20.0
# Long enough behind the bound that an engine which only finishes shows itself.
_WATCHED_S = 10.0
_EVENTS_BEFORE_LEAVING = 4
_TRIES = 2


async def _in_decode(trial: Trial) -> Observation:
    events: list[int] = []

    async def leave() -> None:
        stream = trial.running.long_answer(trial.pace.answer_tokens)
        try:
            await _seen_running(trial, stream)
            await stream.reach(_EVENTS_BEFORE_LEAVING)
        finally:
            over = stream.is_over
            await stream.leave()
        events.append(len(stream.events))
        if over:
            raise NotAsked(f"the answer was over after {len(stream.events)} events: nothing was left to cancel")

    freed = await _freed(trial, leave)
    told = " and ".join(str(number) for number in events)
    return _observation(trial, f"left after {told} events of at most {trial.pace.answer_tokens} tokens", freed)


async def _in_prefill(trial: Trial) -> Observation:
    tokens, tries = prompt_tokens(trial), count(1)
    if trial.prefill_s is not None and trial.prefill_s < trial.pace.cancelled_within_s:
        raise NotAsked(f"{tokens} tokens are read in {trial.prefill_s:.2f} s: there is no time to cancel in")

    async def leave() -> None:
        beginning = f"Cancel, {trial.stand.launches[-1].number}.{next(tries)}:"
        stream = trial.running.long_prompt(beginning, tokens)
        try:
            await _seen_running(trial, stream)
        finally:
            over = stream.is_over
            await stream.leave()
        if over:
            raise NotAsked("the answer came before the client could leave")

    would_take = "" if trial.prefill_s is None else f", which take {trial.prefill_s:.1f} s"
    return _observation(trial, f"left while {tokens} tokens were read{would_take}", await _freed(trial, leave))


async def _seen_running(trial: Trial, stream: Stream) -> None:
    seen, _ = await trial.running.until(lambda now: bool(now.running) or stream.is_over, _BEGINS_WITHIN_S)
    if seen is None or not seen.running:
        raise NotAsked(f"the request was not seen to run ({shown(seen)}); see the row `metrics-load`")


async def _freed(trial: Trial, leave: Callable[[], Awaitable[None]]) -> list[float | None]:
    """Seconds from the client's leaving until nothing runs, None where something still does; once more where the first
    try was too slow, for which a busy machine may be the reason."""
    found: list[float | None] = []
    while len(found) < _TRIES and not _in_time(trial, found):
        await leave()
        _, took_s = await trial.running.until(
            lambda now: now.running == 0 and not now.waiting, trial.pace.cancelled_within_s + _WATCHED_S
        )
        found.append(took_s)
    return found


def _in_time(trial: Trial, found: list[float | None]) -> bool:
    return any(took_s is not None and took_s <= trial.pace.cancelled_within_s for took_s in found)


def _observation(trial: Trial, how: str, found: list[float | None]) -> Observation:
    after = ", the second time ".join(
        f"it still runs after {_WATCHED_S:g} s" if took_s is None else f"nothing runs after {took_s:.2f} s"
        for took_s in found
    )
    predicted = f"nothing runs within {trial.pace.cancelled_within_s:g} s, at one of two tries"
    return Observation(predicted, f"{how}: {after}", _in_time(trial, found))


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
        deadline_s=LONG_DEADLINE_S,
    ),
    Row(
        "cancel-prefill",
        "a client that leaves while its prompt is read frees the engine",
        "running requests are back at 0 within 1 s, of a prompt of 4,000 tokens where the context allows",
        _ADVICE,
        _in_prefill,
        unclaimed=_cannot_be_seen,
        deadline_s=LONG_DEADLINE_S,
    ),
)
