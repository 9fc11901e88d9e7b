"""What an engine says of itself, as its adapter reads it: hang detection, draining and placement rely on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelyard.engines.contract import EngineMetrics
from modelyard.verify.checks import COUNT, FEW_TOKENS, Observation
from modelyard.verify.conformance.asking import LOOK_EVERY_S, Stream
from modelyard.verify.conformance.row import LONG_DEADLINE_S, NotAsked, Row, Trial
from modelyard.verify.conformance.subject import Subject

# To fill an engine that takes more at once would test this process.
_MOST_AT_ONCE = 64
_LEAST_PROMPT_TOKENS = 512
_NAMES = EngineMetrics.__struct_fields__


def _missing(*names: str) -> str:
    return f"the engine does not claim to report {' and '.join(names)}"


def _claims(*names: str) -> Callable[[Subject], str]:
    def unclaimed(subject: Subject) -> str:
        absent = [name for name in names if name not in subject.engine.capabilities.metrics]
        return _missing(*absent) if absent else ""

    return unclaimed


def _claims_any(subject: Subject) -> str:
    return "" if subject.engine.capabilities.metrics else "the engine does not claim to report anything"


async def _metrics(trial: Trial) -> Observation:
    """Idle for sure: what the last request held may be given up a moment after its answer."""
    claimed = trial.subject.engine.capabilities.metrics
    seen, _ = await trial.running.until(lambda now: not now.running and not now.waiting, trial.pace.settles_s)
    predicted = f"{', '.join(sorted(claimed))} and nothing else; running and waiting are 0"
    if seen is None:
        return Observation(predicted, "no metrics", sound=False)
    present = frozenset(name for name in _NAMES if getattr(seen, name) is not None)
    return Observation(predicted, shown(seen), present == claimed and not seen.running and not seen.waiting)


def shown(metrics: EngineMetrics | None) -> str:
    if metrics is None:
        return "no metrics"
    values = ((name, getattr(metrics, name)) for name in _NAMES)
    return ", ".join(f"{name} {value:.6g}" for name, value in values if value is not None) or "nothing"


async def _under_load(trial: Trial) -> Observation:
    """More long answers than the engine works on at once: some run, the others wait; then all their clients leave."""
    running, claimed = trial.running, trial.subject.engine.capabilities.metrics
    at_once = trial.subject.replica.max_in_flight
    waits = "waiting" in claimed and at_once <= _MOST_AT_ONCE
    streams = [running.long_answer(trial.pace.answer_tokens) for _ in range(at_once + 2 if waits else 2)]
    try:
        busy, _ = await running.until(
            lambda now: bool(now.running) and (bool(now.waiting) or not waits) and now.kv_used_ratio != 0,
            trial.pace.settles_s * 3,
        )
    finally:
        await _leave(streams)
    idle, _ = await running.until(lambda now: now.running == 0 and not now.waiting, trial.pace.settles_s)
    loaded = busy is not None and _follows(busy, len(streams), waits=waits)
    emptied = idle is not None and idle.running == 0 and not idle.waiting
    return Observation(
        f"{len(streams)} requests at once: some run{', some wait' if waits else ''}, KV in use; then none",
        f"{shown(busy)}; then {shown(idle)}",
        loaded and emptied,
    )


def _follows(busy: EngineMetrics, requests: int, *, waits: bool) -> bool:
    in_use = busy.kv_used_ratio is None or 0 < busy.kv_used_ratio <= 1
    return 0 < (busy.running or 0) <= requests and (bool(busy.waiting) or not waits) and in_use


async def _leave(streams: list[Stream]) -> None:
    await asyncio.gather(*(stream.leave() for stream in streams))


async def _token_counts(trial: Trial) -> Observation:
    running = trial.running
    before, _ = await running.until(lambda now: not now.running, trial.pace.settles_s)
    before = before or EngineMetrics()
    usage = (await running.replica.chat(COUNT, FEW_TOKENS)).usage
    assert usage is not None  # a whole answer without usage does not parse
    made = usage.completion_tokens

    def counted(now: EngineMetrics) -> bool:
        return _rise(before.generated_tokens, now.generated_tokens) >= made and (
            _rise(before.prompt_tokens, now.prompt_tokens) > 0
        )

    after, took_s = await running.until(counted, trial.pace.settles_s)
    after = after or EngineMetrics()
    prompt = _rise(before.prompt_tokens, after.prompt_tokens)
    generated = _rise(before.generated_tokens, after.generated_tokens)
    return Observation(
        f"{made} generated, 1 to {usage.prompt_tokens} of the prompt",
        f"{generated:g} generated, {prompt:g} of the prompt",
        took_s is not None and generated == made and prompt <= usage.prompt_tokens,
    )


def _rise(before: float | None, after: float | None) -> float:
    return (after or 0.0) - (before or 0.0)


async def _work_done(trial: Trial) -> Observation:
    """Still while idle, rising while a long prompt is read: that is how a hang is told from a long prefill."""
    running = trial.running
    await running.until(lambda now: not now.running, trial.pace.settles_s)
    first = await _work(trial)
    await asyncio.sleep(trial.pace.idle_s)
    still = await _work(trial)
    tokens = prompt_tokens(trial)
    stream = running.long_prompt(f"Work, {trial.stand.launches[-1].number}:", tokens)
    seen = [still]
    while not stream.is_over:
        seen.append(await _work(trial))
        await asyncio.sleep(LOOK_EVERY_S)
    if not stream.whole:
        return Observation("an answer to a long prompt", f"HTTP {stream.status}, {stream.ended}", sound=False)
    trial.prefill_s = stream.ended_at - stream.began_at
    after = await _work(trial)
    rises = len(set(seen)) - 1
    needed = 2 if trial.prefill_s >= trial.pace.long_prefill_s else 0
    return Observation(
        f"idle: no change; {tokens} tokens: {f'{needed} rises or more before the answer' if needed else 'a rise'}",
        f"idle: {still - first:g} in {trial.pace.idle_s:g} s; {tokens} tokens: {rises} rises in "
        f"{trial.prefill_s:.1f} s, {after - still:g} in all",
        first == still and rises >= needed and after > still,
    )


async def _work(trial: Trial) -> float:
    seen = await trial.running.metrics()
    if seen is None or seen.work_done is None:
        raise NotAsked("work_done is not reported; see the row `metrics`")
    return seen.work_done


def prompt_tokens(trial: Trial) -> int:
    """Of a long prompt: as many as the pace wants and the context allows. Raises NotAsked where that is not long."""
    context = trial.subject.replica.context_tokens
    tokens = min(trial.pace.prompt_tokens, context * 3 // 4)
    if tokens < min(_LEAST_PROMPT_TOKENS, trial.pace.prompt_tokens):
        raise NotAsked(f"a context of {context} tokens holds no long prompt")
    return tokens


METRIC_ROWS = (
    Row(
        "metrics",
        "it reports what its adapter claims, and what is absent stays absent",
        "exactly the claimed values are there; an idle engine runs nothing and nothing waits",
        "the engine's metrics were renamed: see the adapter's `read_metrics`",
        _metrics,
        unclaimed=_claims_any,
    ),
    Row(
        "metrics-load",
        "running, waiting and KV use follow the load",
        "above zero while requests run and wait, back at zero when their clients have left",
        "see the adapter's `read_metrics`, and how the engine takes disconnects",
        _under_load,
        unclaimed=_claims("running"),
        deadline_s=LONG_DEADLINE_S,
    ),
    Row(
        "token-counts",
        "tokens are counted",
        "generated tokens rise by what usage says, prompt tokens by no more than the prompt",
        "see the adapter's `read_metrics`",
        _token_counts,
        unclaimed=_claims("generated_tokens", "prompt_tokens"),
    ),
    Row(
        "work-done",
        "work_done rises in a long prefill and stands still when idle",
        "no change while idle; at least two rises before the answer to a prompt that takes 2 s",
        "a long prefill would be taken for a hang, or a hang for work: choose another counter in `read_metrics`",
        _work_done,
        unclaimed=_claims("work_done"),
        deadline_s=LONG_DEADLINE_S,
    ),
)
