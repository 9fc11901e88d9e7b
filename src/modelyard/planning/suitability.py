"""Whether an engine can serve an artifact on a machine at all, before anybody asks whether it fits: reasons only."""

from __future__ import annotations

from collections.abc import Iterable

from modelyard.engines.contract import Capabilities, Engine
from modelyard.engines.hosting import ON_PROCESSORS, Devices
from modelyard.engines.sizing import Accelerated, Particular, Sized
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.records.plan import Artifact
from modelyard.spec.deployment import Deployment

# Names in one sentence: llama.cpp alone knows over a hundred architectures.
_LISTED = 6


def unfit(
    engine: Engine,
    deployment: Deployment,
    artifact: Artifact,
    card: Card | None,
    machine: Machine,
    devices: Devices = ON_PROCESSORS,
) -> str | None:
    """Why this engine cannot serve the artifact here, on these devices, whatever the memory; None where it can."""
    can = engine.capabilities
    if deployment.engine not in ("auto", engine.name):
        return asked_for(deployment.engine)
    if (reason := not_on(engine, machine)) is not None:
        return reason
    if artifact.format not in can.formats:
        return f"serves {', '.join(sorted(can.formats))}, not {artifact.format}" + _cannot_convert(can, artifact, card)
    if card is not None and card.architecture not in can.architectures:
        return f"serves {_listed(can.architectures)}, not {card.architecture}"
    if devices.missing:
        return devices.missing
    if card is None:
        return None
    if devices.accelerators:
        accelerated = isinstance(engine, Accelerated)
        return engine.unfit_on_accelerators(card) if accelerated else "cannot be planned on accelerators"
    reason = engine.unfit(card) if isinstance(engine, Sized) else None
    if reason is None and isinstance(engine, Particular):
        reason = engine.unfit_on(machine, card)
    return reason


def _cannot_convert(can: Capabilities, artifact: Artifact, card: Card | None) -> str:
    """What planning.conversion went through before it gave up, for the message."""
    known = next((one for one in can.conversions if one.source == artifact.format), None)
    if known is None or card is None or card.architecture in known.architectures:
        return ""
    return f" (it converts {_listed(known.architectures)}, not {card.architecture})"


def not_on(engine: Engine, machine: Machine) -> str | None:
    """Why this engine does not run on such a machine at all; None where it does."""
    machines = engine.capabilities.machines
    if machine.arch not in machines:
        return f"runs on {_listed(machines)}, not on {machine.arch}"
    missing = machines[machine.arch] - set(machine.isa)
    return f"needs a processor with {_listed(missing)}" if missing else None


def _listed(names: Iterable[str]) -> str:
    """All of a few, the beginning of many."""
    first, *others = sorted(names)
    shown = ", ".join((first, *others[: _LISTED - 1]))
    return f"{shown} and {len(others) + 1 - _LISTED} more" if len(others) >= _LISTED else shown


def asked_for(engine: str) -> str:
    """Why another engine is not even looked at."""
    return f"the deployment asks for {engine}"
