"""Whether an artifact must become another one before an engine can serve it, by what engines say they can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from modelyard.engines.contract import Conversion, Engine
from modelyard.engines.hosting import ON_PROCESSORS, Devices
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.suitability import unfit
from modelyard.records.plan import Artifact
from modelyard.spec.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Needed:
    """What to make, and with whose environment. `artifact` and `card` are what it will be, as far as it can be known
    beforehand: enough to plan with, so that nothing is made that would not fit."""

    engine: Engine
    conversion: Conversion
    artifact: Artifact
    card: Card


def needed(
    deployment: Deployment,
    artifact: Artifact,
    card: Card | None,
    machine: Machine,
    engines: Iterable[Engine],
    *,
    devices_of: Callable[[Engine], Devices] = lambda engine: ON_PROCESSORS,
) -> Needed | None:
    """The conversion of the first engine that serves what it makes; None where an engine takes the artifact as it is,
    and where nobody takes it either way (the plan then says why)."""
    candidates = tuple(engines)
    if card is None or _is_served(deployment, artifact, card, machine, candidates, devices_of):
        return None
    for engine in candidates:
        for conversion in engine.capabilities.conversions:
            if artifact.format != conversion.source or card.architecture not in conversion.architectures:
                continue
            later, its_card = _later(artifact, card, conversion)
            if _is_served(deployment, later, its_card, machine, (engine,), devices_of):
                return Needed(engine, conversion, later, its_card)
    return None


def _is_served(
    deployment: Deployment,
    artifact: Artifact,
    card: Card,
    machine: Machine,
    engines: tuple[Engine, ...],
    devices_of: Callable[[Engine], Devices],
) -> bool:
    return any(unfit(engine, deployment, artifact, card, machine, devices_of(engine)) is None for engine in engines)


def _later(artifact: Artifact, card: Card, conversion: Conversion) -> tuple[Artifact, Card]:
    size_bytes = (card.parameters or 0) * conversion.element_bytes
    later = Artifact(
        name=f"{artifact.name}-{conversion.suffix}",
        format=conversion.target,
        path="",
        sha256="",
        size_bytes=size_bytes,
        lineage=f"{conversion.done} from sha256 {artifact.sha256}",
        recommended=artifact.recommended,
    )
    # Its format is named by the engine, its card by whoever reads the files later: for planning they are the same.
    its_card = msgspec.structs.replace(
        card, format=conversion.target, weight_bytes={conversion.dtype: size_bytes}, quantisation=conversion.dtype
    )
    return later, its_card
