"""The packaged model on a real engine, started and killed through real shims: what is installed already, or nothing."""

from __future__ import annotations

import os
import platform
import shutil
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from modelyard import settings
from modelyard.engines.contract import Engine, Installed, LaunchSpec
from modelyard.engines.hosting import requirements_here
from modelyard.engines.registry import engines
from modelyard.hardware.machine import Machine, probe
from modelyard.models.reader import read_card
from modelyard.models.store import Store
from modelyard.node.environments import folder_of, read_marker
from modelyard.node.probes import open_session, read_engine_metrics
from modelyard.planning.plan import plan
from modelyard.selftest.row import CannotRun
from modelyard.spec.deployment import default_deployment
from modelyard.state import StateDirectory
from modelyard.verify.conformance.processes import Process
from modelyard.verify.conformance.stand import Launched, Stand, open_stand
from modelyard.verify.conformance.start import watch_start
from modelyard.verify.conformance.subject import Subject

MODEL = "smollm2"
# Engines share the cores with the gateway and with the row itself, whose times are what is looked at.
NICENESS = 10
SEQUENCES = 8
# What runs beside the row.
SOURCES = ("node/shim.py", "programs")
_START = "the real engine does not start: {}"


class RealEngine:
    """One launch; see engines.Engine."""

    def __init__(self, engine: Engine, launched: Launched, leader: Process) -> None:
        self._engine, self._launched, self._leader = engine, launched, leader
        self.address = launched.spec.address

    def kill(self) -> None:
        # Its shim reaps it, so that the number is not given away while the launch is not over.
        if not self._launched.has_ended:
            with suppress(ProcessLookupError):
                os.kill(self._leader.pid, signal.SIGKILL)

    async def ended(self) -> None:
        await self._launched.ended()

    async def working(self) -> float:
        spec = self._launched.spec
        async with open_session(spec) as session:
            seen = await read_engine_metrics(session, spec, self._engine.read_metrics)
        return (seen.running or 0.0) + (seen.waiting or 0.0) if seen is not None else 0.0


class RealEngines:
    """See engines.Engines."""

    sequences = SEQUENCES

    def __init__(self, subject: Subject, stand: Stand) -> None:
        self._subject, self._stand = subject, stand
        served, can = subject.replica, subject.engine.capabilities
        self.facts: Mapping[str, Any] = {
            "engine_model": served.served_name,
            "context_tokens": served.context_tokens,
            "continues_chat": can.continues_chat,
            "ignored_fields": tuple(sorted(can.ignored_fields)),
        }

    async def start(self, number: int = 0) -> RealEngine:
        launched = self._stand.launch(changed=_at_lower_priority)
        start = await watch_start(self._subject, launched)
        if start.ready_s is None:
            raise CannotRun(_START.format(start.because), hint=f"modelyard up {MODEL} says more")
        return RealEngine(self._subject.engine, launched, (await launched.processes())[0])

    def text(self, tokens: int) -> str | None:
        return None


@asynccontextmanager
async def real_engines(replicas: int = 1) -> AsyncGenerator[RealEngines]:
    """Nothing is fetched: raises CannotRun where the engine or the model is not in the state directory. Of the cores
    each of the replicas has its part."""
    subject = _installed(replicas)
    async with open_stand(subject) as stand:
        yield RealEngines(subject, stand)


def _installed(replicas: int) -> Subject:
    loaded, machine = settings.load(), probe()
    state = StateDirectory(loaded.state_dir)
    store = Store(state)
    stored, made = store.find(MODEL), _environment(state, loaded.build, machine)
    if stored is None or made is None:
        hint = f"`modelyard up {MODEL}` fetches both, `modelyard down` then ends what it started"
        raise CannotRun(f"no engine with {MODEL} is in the state directory {state.root}", hint=hint)
    chosen, installed = made
    artifact = store.served(stored)
    card = read_card(Path(artifact.path))
    threads = max(1, machine.cores // replicas)
    deployment = replace(default_deployment(MODEL), engine=chosen.name, settings={"threads": threads})
    return Subject(chosen, installed, deployment, plan(deployment, artifact, card, machine, (chosen,)), card, machine)


def _environment(state: StateDirectory, build: str, machine: Machine) -> tuple[Engine, Installed] | None:
    """The first engine, in the order of preference, that serves such a model and is installed."""
    for one in engines():
        requirements = requirements_here(one, machine, platform.python_version(), asked=build)
        made = read_marker(folder_of(requirements, one.name, state))
        if made is not None and "gguf" in one.capabilities.formats:
            return one, made.installed
    return None


def _at_lower_priority(spec: LaunchSpec) -> LaunchSpec:
    nice = shutil.which("nice")
    return spec if nice is None else replace(spec, argv=(nice, "-n", str(NICENESS), *spec.argv))
