"""From what is wanted to what control can run: environment, model, framework, configuration."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelyard.cli.seven_steps import Current, SevenSteps
from modelyard.control import wanted as desired
from modelyard.control.wanted import Wanted
from modelyard.engines.contract import Engine, Installed
from modelyard.engines.hosting import Devices, devices_here, requirements_here
from modelyard.engines.registry import engine, engines
from modelyard.hardware.machine import Machine, probe
from modelyard.models.card import Card
from modelyard.models.catalogue import ENTRIES
from modelyard.models.reader import read_card
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.node.converting import convert, find
from modelyard.node.environments import ensure
from modelyard.node.making import InstallProgress
from modelyard.planning.accelerators import held
from modelyard.planning.conversion import Needed, needed
from modelyard.planning.plan import claimed, plan
from modelyard.records.plan import Artifact, Plan
from modelyard.settings import Settings
from modelyard.spec.deployment import Deployment
from modelyard.spec.policy import policy_of
from modelyard.spec.sizes import show
from modelyard.state import StateDirectory


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the first four steps found."""

    machine: Machine
    artifact: Artifact
    card: Card | None
    plan: Plan


def prepare(deployment: Deployment, state: StateDirectory, settings: Settings, steps: SevenSteps) -> Wanted:
    """Steps 1 to 4. Raises what stands in the way, in its own words."""
    with steps.step("environment") as step:
        machine = probe()
        devices_of = _devices(deployment, machine, state, settings)
        early = known_before_the_model(deployment)
        installed = _install(early, machine, state, settings, step) if early is not None else None
        engine_text = f"{installed.engine} {installed.version}" if installed is not None else "the model decides"
        step.result = f"{machine.cores} cores, {show(machine.memory_bytes)} · {engine_text}"
    with steps.step("model") as step:
        artifact, card = _model(deployment, state, settings, step)
        how = ""
        if (need := needed(deployment, artifact, card, machine, engines(), devices_of=devices_of)) is not None:
            how = f" · {need.conversion.done} from sha256 {artifact.sha256[:12]}"
            artifact, card = _converted(need, artifact, deployment, machine, state, settings, step)
        step.result = _in_short(artifact, card) + how
    for note in artifact.notes:
        steps.note(note)
    with steps.step("framework") as step:
        planned = _planned(deployment, artifact, card, machine, state, devices_of)
        if installed is None or planned.replicas[0].engine != installed.engine:
            installed = _install(engine(planned.replicas[0].engine), machine, state, settings, step)
        step.result = _why_it_fits(planned)
    with steps.step("configuration") as step:
        changed = [name for name in deployment.settings]
        step.result = f"as asked: {', '.join(changed)}" if changed else "skipped: defaults"
    return _wanted(deployment, planned, installed)


def look(deployment: Deployment, state: StateDirectory, settings: Settings, steps: SevenSteps) -> Prepared:
    """What would run, without installing or starting anything but the fetch of the model."""
    machine = probe()
    devices_of = _devices(deployment, machine, state, settings)
    with steps.step("model") as step:
        artifact, card = _model(deployment, state, settings, step)
        how = ""
        if (need := needed(deployment, artifact, card, machine, engines(), devices_of=devices_of)) is not None:
            how = f" · {need.conversion.done} from sha256 {artifact.sha256[:12]}"
            made = find(need.conversion, need.artifact, artifact, Store(state))
            artifact, card = (made, read_card(Path(made.path))) if made is not None else (need.artifact, need.card)
        step.result = _in_short(artifact, card) + how
    for note in artifact.notes:
        steps.note(note)
    with steps.step("framework") as step:
        planned = _planned(deployment, artifact, card, machine, state, devices_of)
        step.result = _why_it_fits(planned)
    return Prepared(machine, artifact, card, planned)


def known_before_the_model(deployment: Deployment) -> Engine | None:
    """The engine that was named, or the preferred one of those that take what the model's name promises; None where
    that would be a guess: an environment may take gigabytes."""
    if deployment.engine != "auto":
        return engine(deployment.engine)
    if deployment.model not in ENTRIES and not deployment.model.lower().endswith(".gguf"):
        return None
    return next((one for one in engines() if "gguf" in one.capabilities.formats), None)


def _planned(
    deployment: Deployment,
    artifact: Artifact,
    card: Card | None,
    machine: Machine,
    state: StateDirectory,
    devices_of: Callable[[Engine], Devices],
) -> Plan:
    taken = claimed(_others(deployment, state))
    return plan(deployment, artifact, card, machine, engines(), claimed_bytes=taken, devices_of=devices_of)


def _others(deployment: Deployment, state: StateDirectory) -> list[Plan]:
    """The plans of the deployments beside this one."""
    others = (desired.load(state, name) for name in desired.names(state) if name != deployment.name)
    return [other.plan for other in others if other is not None]


def _devices(
    deployment: Deployment, machine: Machine, state: StateDirectory, settings: Settings
) -> Callable[[Engine], Devices]:
    """What the environment is made for and what is planned with are one decision."""
    taken = held(_others(deployment, state))
    return lambda chosen: devices_here(chosen, machine, platform.python_version(), asked=settings.build, held=taken)


def _install(chosen: Engine, machine: Machine, state: StateDirectory, settings: Settings, step: Current) -> Installed:
    def heard(progress: InstallProgress) -> None:
        step.advance(f"{chosen.name}: {progress.text}", progress.fraction)

    requirements = requirements_here(chosen, machine, platform.python_version(), asked=settings.build)
    return ensure(requirements, chosen.name, state, settings.index, heard, environ=settings.environ)


def _model(
    deployment: Deployment, state: StateDirectory, settings: Settings, step: Current
) -> tuple[Artifact, Card | None]:
    def heard(what: str, done: int, total: int | None) -> None:
        step.advance(f"{what} {show(done)}", done / total if total else None)

    artifact = resolve(deployment.model, state, settings, heard)
    return artifact, read_card(Path(artifact.path))


def _converted(
    need: Needed,
    parent: Artifact,
    deployment: Deployment,
    machine: Machine,
    state: StateDirectory,
    settings: Settings,
    step: Current,
) -> tuple[Artifact, Card | None]:
    """The artifact that the engine serves. It is planned before it is made: what does not fit is not made."""
    plan(
        deployment,
        need.artifact,
        need.card,
        machine,
        (need.engine,),
        claimed_bytes=claimed(_others(deployment, state)),
        devices_of=_devices(deployment, machine, state, settings),
    )
    installed = _install(need.engine, machine, state, settings, step)

    def heard(what: str, done: int, total: int | None) -> None:
        step.advance(f"{what} {show(done)}", done / total if total else None)

    made = convert(need.conversion, need.artifact, parent, installed, Store(state), heard)
    return made, read_card(Path(made.path))


def _in_short(artifact: Artifact, card: Card | None) -> str:
    size = show(artifact.size_bytes)
    if card is None:
        return f"{artifact.name} · {size}"
    content = f"sha256 {artifact.sha256[:12]}" if artifact.sha256 else "not made yet"
    return f"{artifact.name} · {card.architecture}, {card.quantisation}, {size} · {content}"


def _why_it_fits(planned: Plan) -> str:
    first = planned.replicas[0]
    memory = next((one for one in planned.predictions if one.unit == "bytes" and "memory" in one.what), None)
    needs = f", {show(memory.value)} predicted" if memory is not None else ""
    count = f"{len(planned.replicas)} replica{'s' if len(planned.replicas) > 1 else ''}"
    return f"{first.engine}, {count}, {first.max_in_flight} requests at once{needs}"


def _wanted(deployment: Deployment, planned: Plan, installed: Installed) -> Wanted:
    entry = ENTRIES.get(deployment.model)
    return Wanted(
        name=deployment.name,
        plan=planned,
        install=installed,
        probes=entry.probes if entry is not None else (),
        created_at=int(time.time()),
        policy=policy_of(deployment),
    )
