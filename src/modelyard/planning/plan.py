"""From what is wanted and what exists to what will run. Pure: the same inputs give the same plan."""

from __future__ import annotations

from collections.abc import Iterable

from modelyard.engines.contract import Capabilities, Engine
from modelyard.engines.sizing import BadSetting, Grouped, Particular, Room, Sized
from modelyard.errors import CannotPlan
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.memory import Budget, Need, divide
from modelyard.records.plan import Artifact, Plan, Prediction, Rejected, ReplicaPlan, Setting
from modelyard.spec.deployment import Deployment

# Startup may take this many times the longest expected load before it counts as failed, and this much at least.
_STARTUP_SLACK, _STARTUP_LEAST_S = 4.0, 120.0
# For engines that bring no numbers of their own.
_PLAIN_CONTEXT_TOKENS, _PLAIN_SEQUENCES = 4096, 8


def plan(
    deployment: Deployment, artifact: Artifact, card: Card | None, machine: Machine, engines: Iterable[Engine]
) -> Plan:
    """The plan of one deployment. `card` is None for formats that have none.

    Raises CannotPlan with the number that does not fit and, in the hint, what to change."""
    engine, rejected = choose(deployment, artifact, card, machine, engines)
    if isinstance(engine, Sized) and card is not None:
        return _sized(deployment, artifact, card, machine, engine, engine, rejected)
    return _plain(deployment, artifact, engine, rejected)


def choose(
    deployment: Deployment, artifact: Artifact, card: Card | None, machine: Machine, engines: Iterable[Engine]
) -> tuple[Engine, tuple[Rejected, ...]]:
    """The first engine that can serve the artifact, and why the others before and after it were not taken."""
    chosen: Engine | None = None
    rejected: list[Rejected] = []
    for engine in engines:
        reason = _unfit(engine, deployment, artifact, card, machine)
        if reason is None and chosen is not None:
            reason = f"{chosen.name} comes first in the order of preference"
        if reason is None:
            chosen = engine
        else:
            rejected.append(Rejected(what=f"engine {engine.name}", reason=reason))
    if chosen is None:
        why = "; ".join(f"{one.what.removeprefix('engine ')}: {one.reason}" for one in rejected)
        raise CannotPlan(
            f"no engine can serve {artifact.name} ({why or 'there are no engines'})",
            hint="convert the model to a format that one of them serves"
            + ("" if deployment.engine == "auto" else ", or let `engine: auto` choose"),
        )
    return chosen, tuple(rejected)


def _unfit(
    engine: Engine, deployment: Deployment, artifact: Artifact, card: Card | None, machine: Machine
) -> str | None:
    can = engine.capabilities
    if deployment.engine not in ("auto", engine.name):
        return f"the deployment asks for {deployment.engine}"
    if artifact.format not in can.formats:
        return f"serves {', '.join(sorted(can.formats))}, not {artifact.format}" + _cannot_convert(can, artifact, card)
    if card is not None and card.architecture not in can.architectures:
        return f"serves {', '.join(sorted(can.architectures))}, not {card.architecture}"
    if card is None:
        return None
    reason = engine.unfit(card) if isinstance(engine, Sized) else None
    if reason is None and isinstance(engine, Particular):
        reason = engine.unfit_on(machine, card)
    return reason


def _cannot_convert(can: Capabilities, artifact: Artifact, card: Card | None) -> str:
    """What planning.conversion went through before it gave up, for the message."""
    known = next((one for one in can.conversions if one.source == artifact.format), None)
    if known is None or card is None or card.architecture in known.architectures:
        return ""
    return f" (it converts {', '.join(sorted(known.architectures))}, not {card.architecture})"


def _sized(
    deployment: Deployment,
    artifact: Artifact,
    card: Card,
    machine: Machine,
    engine: Engine,
    sized: Sized,
    rejected: tuple[Rejected, ...],
) -> Plan:
    try:
        need = _need(deployment, card, sized)
        budget = Budget.of(deployment, machine)
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
        )
        settings = sized.settings(room, deployment.settings, artifact.recommended)
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
        ),
        predictions=(
            _exactly("weights", card.total_weight_bytes, "bytes"),
            _exactly("KV cache per token", need.kv_bytes_per_token, "bytes"),
            _exactly("KV cache", division.kv_cache_bytes, "bytes"),
            Prediction(
                what="memory of one replica, KV cache full",
                value=foot.memory_bytes + division.kv_cache_bytes,
                low=foot.memory_low_bytes,
                high=foot.memory_high_bytes + division.kv_cache_bytes,
                unit="bytes",
            ),
            Prediction(what="load", value=foot.load_s, low=foot.load_low_s, high=foot.load_high_s, unit="seconds"),
        ),
        rejected=(*rejected, *division.rejected),
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
        asked_context_tokens=limits.context_tokens,
        asked_sequences=limits.max_in_flight,
        # Plain numbers from here on: records are encoded, and a ByteSize is a matter of the file alone.
        asked_kv_bytes=None if limits.kv_cache is None else int(limits.kv_cache),
        ranks=ranks,
    )


def _plain(deployment: Deployment, artifact: Artifact, engine: Engine, rejected: tuple[Rejected, ...]) -> Plan:
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
    return Plan(deployment=deployment.name, replicas=replicas, rejected=rejected)


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
        )
        for number in range(deployment.replicas)
    )


def _exactly(what: str, value: float, unit: str) -> Prediction:
    return Prediction(what=what, value=value, low=value, high=value, unit=unit)
