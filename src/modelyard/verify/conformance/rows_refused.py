"""Launches that cannot go well: each must end with its cause and what to change, and not as a crash loop."""

from __future__ import annotations

from collections.abc import Callable

from modelyard.engines.contract import Failure, LaunchSpec
from modelyard.engines.sizing import BadSetting
from modelyard.records.plan import ReplicaPlan
from modelyard.spec.sizes import show
from modelyard.verify.checks import Observation
from modelyard.verify.conformance.asking import running
from modelyard.verify.conformance.row import NotAsked, Row, Trial
from modelyard.verify.conformance.stand import Launched
from modelyard.verify.conformance.start import in_a_line, watch_start, why_not
from modelyard.verify.conformance.subject import UNHEARD_OF, Subject, limited, with_kv_cache, with_unheard_of

_DEADLINE_S = 24 * 3600.0
_ADVICE = "the engine's words changed, or the adapter does not know them yet: see its `explain_failure`"


async def _bad_setting(trial: Trial) -> Observation:
    predicted = f"bad_config (permanent) that names {UNHEARD_OF} and says what to do"
    try:
        failure, instead = await _launch_to_fail(trial, with_unheard_of(trial.subject.replica))
    except BadSetting as error:
        return Observation(predicted, f"refused by the adapter: {error}", UNHEARD_OF in str(error))
    except (KeyError, TypeError, ValueError) as error:
        return Observation(predicted, f"the adapter raised {type(error).__name__}: {error}", sound=False)
    if failure is None:
        return Observation(predicted, instead, sound=False)
    sound = failure.kind == "bad_config" and failure.permanent and bool(failure.fix) and _names_it(failure)
    return Observation(predicted, in_a_line(failure), sound)


def _names_it(failure: Failure) -> bool:
    """As a setting, a flag or a variable."""
    return UNHEARD_OF in f"{failure.cause} {failure.fix}".lower().replace("-", "_")


async def _kv_too_small(trial: Trial) -> Observation:
    """One block. An engine that starts all the same has to refuse what does not fit into it."""
    assert trial.subject.sized is not None  # otherwise unclaimed
    sized, card = trial.subject.sized
    per_token = sized.kv_bytes_per_token(card, trial.subject.deployment.settings)
    if per_token is None:
        raise NotAsked("the size of the KV cache is not known for this model")
    kv_bytes = per_token * sized.kv_block_tokens
    predicted = (
        f"does_not_fit with {show(kv_bytes)} of KV cache, and what to change; or requests refused that need more"
    )
    try:
        replica = with_kv_cache(trial.subject, sized, kv_bytes)
    except BadSetting as error:
        return Observation(predicted, f"refused by the adapter: {error} (try: {error.fix})", bool(error.fix))
    launched = trial.stand.launch(replica)
    try:
        start = await watch_start(trial.subject, launched)
        if launched.failure is not None:
            return Observation(predicted, in_a_line(launched.failure), _is_no_crash_loop(launched.failure))
        if start.ready_s is None:
            return Observation(predicted, start.because, sound=False)
        return await _refuses_what_needs_more(trial, launched, predicted)
    finally:
        await launched.kill()


async def _refuses_what_needs_more(trial: Trial, launched: Launched, predicted: str) -> Observation:
    async with running(trial.subject, launched) as now:
        tokens = trial.subject.replica.context_tokens * 3 // 4
        stream = now.long_prompt("More than fits:", tokens)
        await stream.over()
    measured = f"it starts; a prompt of {tokens} tokens: HTTP {stream.status}, {stream.ended}"
    return Observation(predicted, measured, stream.status is not None and 400 <= stream.status < 600)


async def _memory_too_small(trial: Trial) -> Observation:
    bound = _too_little(trial.subject)
    predicted = f"out_of_memory or does_not_fit within {show(bound)}, and what to change"
    failure, instead = await _launch_to_fail(trial, changed=lambda spec: limited(spec, bound))
    if failure is None:
        return Observation(predicted, instead, sound=False)
    sound = failure.kind in ("out_of_memory", "does_not_fit") and bool(failure.fix)
    return Observation(predicted, in_a_line(failure), sound)


def _too_little(subject: Subject) -> int:
    """The least that the engine is expected to need beside its KV cache, and a quarter of that: it can begin, it cannot
    finish."""
    assert subject.sized is not None  # otherwise unclaimed
    sized, card = subject.sized
    kv_bytes = next((int(one.value) for one in subject.plan.predictions if one.what == "KV cache"), 0)
    return sized.footprint(card, subject.replica.context_tokens).memory_low_bytes + kv_bytes // 4


def _is_no_crash_loop(failure: Failure) -> bool:
    """The same start would end the same way; only memory may be free again another time."""
    kinds = ("does_not_fit", "out_of_memory")
    return failure.kind in kinds and bool(failure.fix) and (failure.permanent or failure.kind == "out_of_memory")


async def _launch_to_fail(
    trial: Trial,
    replica: ReplicaPlan | None = None,
    changed: Callable[[LaunchSpec], LaunchSpec] = lambda spec: spec,
) -> tuple[Failure | None, str]:
    """How it failed, or what it did in place of failing."""
    launched = trial.stand.launch(replica, changed)
    start = await watch_start(trial.subject, launched)
    if launched.failure is not None:
        return launched.failure, ""
    await launched.kill()
    instead = why_not(launched, trial.subject.replica.startup_timeout_s) if start.ready_s is None else ""
    return None, instead or "it starts and answers"


def _unsized(subject: Subject) -> str:
    return "" if subject.sized is not None else "the engine brings no numbers for its memory"


def _takes_what_it_needs(subject: Subject) -> str:
    if subject.sized is not None and subject.sized[0].whole_contexts:
        return "its KV cache follows from its context and its sequences, and is not bounded by itself"
    return _unsized(subject)


REFUSED_ROWS = (
    Row(
        "bad-setting",
        "a setting that reaches the engine and is not its own ends it for good",
        "a permanent bad_config whose words name the setting",
        _ADVICE,
        _bad_setting,
        deadline_s=_DEADLINE_S,
    ),
    Row(
        "kv-too-small",
        "a KV cache that is too small ends it for good, or bounds what is asked of it",
        "a permanent does_not_fit (or out_of_memory) with advice; or 4xx/5xx for what needs more",
        _ADVICE,
        _kv_too_small,
        unclaimed=_takes_what_it_needs,
        deadline_s=_DEADLINE_S,
    ),
    Row(
        "memory-too-small",
        "memory that is too small for the model is named as the cause",
        "out_of_memory or does_not_fit with advice",
        _ADVICE,
        _memory_too_small,
        unclaimed=_unsized,
        deadline_s=_DEADLINE_S,
    ),
)
