"""From what is wanted and what exists to what will run. Pure: the same inputs give the same plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from modelyard.engines.contract import Engine
from modelyard.engines.hosting import ON_PROCESSORS, Devices
from modelyard.engines.sizing import Accelerated, BadSetting, Footprint, Grouped, Room, Sized
from modelyard.errors import CannotPlan
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.accelerators import budget_of, shared_out
from modelyard.planning.memory import Budget, Need, divide
from modelyard.planning.suitability import asked_for, unfit
from modelyard.records.plan import Artifact, Plan, Prediction, Rejected, ReplicaPlan, Setting
from modelyard.spec.deployment import Deployment
from modelyard.spec.sizes import show
from modelyard.spec.wanted import SettingValue

# The prediction that others read by its name: what a replica takes from the machine.
MEMORY = "memory of one replica, KV cache full"
# Of accelerators: never counted as the machine's.
ACCELERATOR_MEMORY = "GPU memory of one replica, KV cache full (by formula, not measured)"
# Startup may take this many times the longest expected load before it counts as failed, and this much at least.
_STARTUP_SLACK, _STARTUP_LEAST_S = 4.0, 120.0
# For engines that bring no numbers of their own.
_PLAIN_CONTEXT_TOKENS, _PLAIN_SEQUENCES = 4096, 8


def plan(
    deployment: Deployment,
    artifact: Artifact,
    card: Card | None,
    machine: Machine,
    engines: Iterable[Engine],
    *,
    claimed_bytes: int = 0,
    devices_of: Callable[[Engine], Devices] = lambda engine: ON_PROCESSORS,
) -> Plan:
    """The plan of one deployment, with the first engine that can serve the artifact and fits; every other one is
    rejected with its reason. `card` is None for formats that have none; `claimed_bytes` is what other deployments of
    this machine were planned to take, `devices_of` on what an engine computes here (engines.hosting.devices_here).

    Raises CannotPlan with the number that does not fit and, in the hint, what to change."""
    budget = Budget.of(deployment, machine, claimed_bytes)
    chosen: Plan | None = None
    rejected: list[Rejected] = []
    failed: list[tuple[Engine, CannotPlan]] = []
    for engine in engines:
        devices = devices_of(engine)
        reason = unfit(engine, deployment, artifact, card, machine, devices)
        if reason is None:
            try:
                made = _planned(deployment, artifact, card, machine, budget, engine, devices)
            except CannotPlan as error:
                failed.append((engine, error))
                reason = error.message
            else:
                chosen, reason = (made, None) if chosen is None else (chosen, _second_to(chosen, made))
        if reason is not None:
            rejected.append(Rejected(what=f"engine {engine.name}", reason=reason))
    if chosen is None:
        raise _why_none(deployment, artifact, rejected, failed)
    return msgspec.structs.replace(chosen, rejected=(*rejected, *chosen.rejected))


def _second_to(chosen: Plan, other: Plan) -> str:
    """Both would do: the order of preference decides, and what the other one would take is told."""
    memory = next((one for one in other.predictions if one.what == MEMORY), None)
    takes = f"; it would take {show(memory.value)}" if memory is not None else ""
    return f"{chosen.replicas[0].engine} comes first in the order of preference{takes}"


def _why_none(
    deployment: Deployment, artifact: Artifact, rejected: list[Rejected], failed: list[tuple[Engine, CannotPlan]]
) -> CannotPlan:
    """Where an engine could serve it but nothing fits, the preferred such engine tells what to change."""
    asked_for_another = asked_for(deployment.engine)
    reasons = {one.what.removeprefix("engine "): one.reason for one in rejected if one.reason != asked_for_another}
    if failed:
        engine, error = failed[0]
        others = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if name != engine.name)
        return CannotPlan(f"{error.message}{f' ({others})' if others else ''}", hint=error.hint)
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or asked_for_another
    hint = "convert the model to a format that one of them serves"
    return CannotPlan(
        f"no engine can serve {artifact.name} ({why})",
        hint=hint if deployment.engine == "auto" else f"{hint}, or let `engine: auto` choose",
    )


def _planned(
    deployment: Deployment,
    artifact: Artifact,
    card: Card | None,
    machine: Machine,
    budget: Budget,
    engine: Engine,
    devices: Devices,
) -> Plan:
    if isinstance(engine, Sized) and card is not None:
        return _sized(deployment, artifact, card, machine, budget, engine, engine, devices)
    return _plain(deployment, artifact, engine)


def _sized(
    deployment: Deployment,
    artifact: Artifact,
    card: Card,
    machine: Machine,
    budget: Budget,
    engine: Engine,
    sized: Sized,
    devices: Devices,
) -> Plan:
    accelerated = sized if devices.accelerators and isinstance(sized, Accelerated) else None
    own: tuple[tuple[Accelerator, ...], ...] = ()
    try:
        need = _need(deployment, card, sized)
        if accelerated is not None:
            need = _on_accelerators(need, card, accelerated)
            own = shared_out(deployment, devices, need.ranks)
            budget = budget_of(deployment, own[0], accelerated.accelerator_share(deployment.settings))
        division = divide(need, budget)
        cores = max(1, machine.cores // deployment.replicas)
        room = Room(
            cores=cores,
            context_tokens=division.context_tokens,
            max_sequences=division.max_sequences,
            kv_cache_bytes=division.kv_cache_bytes,
            hang_timeout_s=deployment.timeouts.hang_s,
            because=division.because,
            ranks=need.ranks,
            kv_bytes_per_token=need.kv_bytes_per_token,
            accelerators=len(own[0]) if own else 0,
            build=devices.build,
        )
        settings = sized.settings(room, _overrides(deployment, engine), artifact.recommended)
    except BadSetting as error:
        raise CannotPlan(f"{deployment.name}: {error}", hint=error.fix) from error
    foot = need.footprint(division.context_tokens)
    startup_s = deployment.timeouts.startup_s or max(_STARTUP_LEAST_S, _STARTUP_SLACK * foot.load_high_s)
    return Plan(
        deployment=deployment.name,
        replicas=_replicas(
            deployment,
            artifact,
            engine,
            settings,
            context_tokens=division.context_tokens,
            max_in_flight=division.max_sequences,
            startup_s=startup_s,
            ranks=need.ranks,
            build=devices.build,
            own=own,
        ),
        predictions=(
            _exactly("weights", card.total_weight_bytes, "bytes"),
            _exactly("KV cache per token", need.kv_bytes_per_token, "bytes"),
            _exactly("KV cache", division.kv_cache_bytes, "bytes"),
            Prediction(
                what=MEMORY if accelerated is None else ACCELERATOR_MEMORY,
                value=foot.memory_bytes + division.kv_cache_bytes,
                low=foot.memory_low_bytes,
                high=foot.memory_high_bytes + division.kv_cache_bytes,
                unit="bytes",
            ),
            Prediction(what="load", value=foot.load_s, low=foot.load_low_s, high=foot.load_high_s, unit="seconds"),
        ),
        rejected=division.rejected,
    )


def _need(deployment: Deployment, card: Card, sized: Sized) -> Need:
    kv_bytes = sized.kv_bytes_per_token(card, deployment.settings)
    if kv_bytes is None or card.context_tokens is None:
        why = card.kv_unknown_because or "its header does not say it"
        missing = "length of its context" if card.context_tokens is None else "size of its KV cache"
        raise CannotPlan(
            f"{deployment.name}: the {missing} is unknown ({why})", hint="use a model of the usual llama or qwen family"
        )
    limits = deployment.limits
    ranks = sized.ranks(card, deployment.settings) if isinstance(sized, Grouped) else 1
    return Need(
        name=deployment.name,
        model_context_tokens=card.context_tokens,
        kv_bytes_per_token=kv_bytes,
        kv_block_tokens=sized.kv_block_tokens,
        footprint=lambda context_tokens: (
            sized.footprint_of_ranks(card, context_tokens, ranks)
            if isinstance(sized, Grouped)
            else sized.footprint(card, context_tokens)
        ),
        default_sequences=sized.default_sequences,
        whole_contexts=sized.whole_contexts,
        asked_context_tokens=limits.context_tokens,
        asked_sequences=limits.max_in_flight,
        # Plain numbers from here on: records are encoded, and a ByteSize is a matter of the file alone.
        asked_kv_bytes=None if limits.kv_cache is None else int(limits.kv_cache),
        ranks=ranks,
    )


def _on_accelerators(need: Need, card: Card, engine: Accelerated) -> Need:
    foot = engine.footprint_on_accelerators(card, need.ranks)

    def whatever_the_context(context_tokens: int) -> Footprint:
        return foot

    return replace(
        need,
        footprint=whatever_the_context,
        default_sequences=engine.accelerator_sequences,
        default_because=engine.accelerator_sequences_because,
    )


def _overrides(deployment: Deployment, engine: Engine) -> dict[str, SettingValue]:
    """The operator's settings, and the one that strict isolation makes. Raises BadSetting where the two disagree."""
    if deployment.isolation != "strict" or engine.capabilities.cache_salt:
        return deployment.settings
    if deployment.settings.get("prefix_cache"):
        raise BadSetting(
            f"isolation strict and settings.prefix_cache exclude each other: {engine.name} cannot keep keys apart",
            "leave settings.prefix_cache out, or set isolation: salted",
        )
    return {**deployment.settings, "prefix_cache": False}


def _plain(deployment: Deployment, artifact: Artifact, engine: Engine) -> Plan:
    """For an engine without memory of its own to plan: the operator's settings, and nothing else."""
    settings = tuple(
        Setting(name=name, value=value, reason="the operator's setting") for name, value in deployment.settings.items()
    )
    replicas = _replicas(
        deployment,
        artifact,
        engine,
        settings,
        context_tokens=deployment.limits.context_tokens or _PLAIN_CONTEXT_TOKENS,
        max_in_flight=deployment.limits.max_in_flight or _PLAIN_SEQUENCES,
        startup_s=deployment.timeouts.startup_s or _STARTUP_LEAST_S,
    )
    return Plan(deployment=deployment.name, replicas=replicas)


def _replicas(
    deployment: Deployment,
    artifact: Artifact,
    engine: Engine,
    settings: tuple[Setting, ...],
    *,
    context_tokens: int,
    max_in_flight: int,
    startup_s: float,
    ranks: int = 1,
    build: str = "cpu",
    own: tuple[tuple[Accelerator, ...], ...] = (),
) -> tuple[ReplicaPlan, ...]:
    return tuple(
        ReplicaPlan(
            name=f"{deployment.name}-{number}",
            engine=engine.name,
            served_name=deployment.name,
            artifact=artifact,
            max_in_flight=max_in_flight,
            context_tokens=context_tokens,
            settings=settings,
            startup_timeout_s=startup_s,
            drain_timeout_s=deployment.timeouts.drain_s,
            hang_timeout_s=deployment.timeouts.hang_s,
            ranks=ranks,
            build=build,
            accelerators=tuple(one.index for one in own[number]) if own else (),
        )
        for number in range(deployment.replicas)
    )


def _exactly(what: str, value: float, unit: str) -> Prediction:
    return Prediction(what=what, value=value, low=value, high=value, unit=unit)


def claimed(others: Iterable[Plan]) -> int:
    """Bytes that all replicas of other deployments may take at most, as they were planned. What one on accelerators
    takes of the machine's own memory is not known yet, and not among them."""
    highs = (
        (prediction.high, len(other.replicas))
        for other in others
        for prediction in other.predictions
        if prediction.what == MEMORY
    )
    return int(sum(high * replicas for high, replicas in highs))
