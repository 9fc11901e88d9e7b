"""Measuring this machine: memory with our own means, kernels by each installed engine that can."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from modelyard.engines.contract import Engine, Installed
from modelyard.engines.hosting import Gauged
from modelyard.errors import ModelyardError
from modelyard.hardware import bandwidth
from modelyard.hardware.details import Details, affinity
from modelyard.hardware.machine import Machine
from modelyard.hardware.noise import shares, times
from modelyard.hardware.rates import EngineRates, Rates, Spread, engine_rates, load_rates, save_rates
from modelyard.node.environments import list_environments
from modelyard.state import StateDirectory, locked

# Told: what is being measured now.
OnStage = Callable[[str], None]
# Half a minute on idle cores; busy ones take several times as long.
_GAUGE_TIMEOUT_S = 300.0
_LEAST_BUFFER_BYTES = 32 << 20


def ensure_rates(
    state: StateDirectory, machine: Machine, details: Details, engines: Iterable[Engine], on_stage: OnStage
) -> Rates:
    """What is known of this machine, or measured now; another process that measures already is waited for."""
    with locked(state.rates_lock, holding="measuring this machine", wait=True):
        known = load_rates(state, machine.fingerprint())
        return known if known is not None else _measured(state, machine, details, engines, on_stage)


def measure(
    state: StateDirectory, machine: Machine, details: Details, engines: Iterable[Engine], on_stage: OnStage
) -> Rates:
    """Measures, returns, and keeps unless something calmer is known.

    Raises ModelyardError where there is too little memory, or an engine's measurement fails; what was known stays."""
    with locked(state.rates_lock, holding="measuring this machine", wait=True):
        return _measured(state, machine, details, engines, on_stage)


def _measured(
    state: StateDirectory, machine: Machine, details: Details, engines: Iterable[Engine], on_stage: OnStage
) -> Rates:
    cpus = sorted(affinity())[: machine.cores] or list(range(machine.cores))
    size = bandwidth.buffer_size(details.last_level_cache_bytes, machine.available_bytes)
    if size < _LEAST_BUFFER_BYTES:
        raise ModelyardError(
            f"{machine.available_bytes >> 20} MiB are free: too little memory to measure in",
            hint="end what takes the memory and measure again",
        )
    on_stage("memory")
    before = times(frozenset(cpus))
    memory = bandwidth.measure(cpus, size)
    kernels = tuple(_gauged(state, machine, engines, size, on_stage))
    stolen, others = shares(before, times(frozenset(cpus)))
    rates = Rates(
        machine=machine.fingerprint(),
        at=time.time(),
        threads=len(cpus),
        buffer_bytes=memory.buffer_bytes,
        read_bytes_per_s=Spread.of(memory.read),
        copy_bytes_per_s=Spread.of(memory.copy),
        stolen=stolen,
        others=others,
        engines=kernels,
    )
    save_rates(state, rates)
    return rates


def _gauged(
    state: StateDirectory, machine: Machine, engines: Iterable[Engine], buffer_bytes: int, on_stage: OnStage
) -> Iterable[EngineRates]:
    installed = {one.engine: one for one in list_environments(state)}
    for engine in engines:
        here = installed.get(engine.name)
        if here is not None and isinstance(engine, Gauged):
            on_stage(f"{engine.name}'s kernels")
            yield _run(engine.gauge(here, machine.cores, buffer_bytes), here)


def _run(command: tuple[str, ...], installed: Installed) -> EngineRates:
    """In the engine's own interpreter, with as bare an environment as the engine has."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": installed.root, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    failed = f"measuring {installed.engine} {installed.version} failed"
    try:
        done = subprocess.run(
            command,
            env=environ,
            cwd=Path(installed.root),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GAUGE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise ModelyardError(f"{failed}: it took longer than {_GAUGE_TIMEOUT_S:.0f} s", hint="try again") from None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        if done.returncode == 0 and lines:
            return engine_rates(installed.engine, installed.version, lines[-1])
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        reason = words[-1]
    except ValueError as error:
        reason = str(error)
    raise ModelyardError(
        f"{failed}: {reason}", hint=f"make its environment anew: modelyard engines remove {installed.engine}"
    )
