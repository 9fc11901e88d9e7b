"""Engines' own installations: a venv each, made by uv, trusted only when it is whole.

A venv knows its own path (scripts, activation), so it is made where it will stay and not renamed into place. What makes
it count is the marker `complete.json`, written last and atomically; a folder without it is removed before the next
attempt. Packages are the engine's whole closure at exact versions, installed from wheels only and without dependencies:
nothing is pulled that the adapter does not name, and no package's code runs at installation."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelyard import settings
from modelyard.engines.contract import Installed, Requirements
from modelyard.errors import EnvironmentFailed
from modelyard.hardware.machine import disk_free_bytes
from modelyard.node.installing import Uv, gpu_packages, import_module
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.records.fingerprint import sha256_of
from modelyard.settings import PackageIndex
from modelyard.spec.sizes import show
from modelyard.state import StateDirectory, write_atomically

MARKER = "complete.json"
# Beside the installed files: bytecode, and uv's own cache of what it does not link.
_DISK_FACTOR = 1.3


@dataclass(frozen=True, slots=True)
class InstallProgress:
    """`fraction` is of the bytes that the finished installation takes; None where it is not known."""

    stage: str
    fraction: float | None = None


OnProgress = Callable[[InstallProgress], None]


class _Complete(Record, tag_field="schema", tag="environment/v1"):
    installed: Installed
    packages: tuple[str, ...]
    freeze: tuple[str, ...]
    made_at: float


def ensure(
    requirements: Requirements,
    engine_name: str,
    state: StateDirectory,
    index: PackageIndex,
    on_progress: OnProgress,
    *,
    environ: Mapping[str, str] | None = None,
) -> Installed:
    """The engine's environment, made if it is not there; blocks, also while another process makes the same one.

    `environ` is what children may inherit (the settings' if None). Raises EnvironmentFailed and then leaves nothing."""
    if not requirements.packages:
        return _ours(requirements, engine_name)
    root = state.environments / f"{engine_name}-{_key(requirements)}"
    if (found := _read(root)) is not None:
        return found
    inherited = settings.load().environ if environ is None else environ
    with _alone(root, on_progress) as lock:
        if (found := _read(root)) is not None:
            return found
        shutil.rmtree(root, ignore_errors=True)
        try:
            return _make(requirements, engine_name, root, Uv(index, inherited, lock), on_progress)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise


def list_environments(state: StateDirectory) -> tuple[Installed, ...]:
    """The complete ones, by folder name."""
    return tuple(found for root in sorted(state.environments.iterdir()) if (found := _read(root)) is not None)


def remove(installed: Installed, state: StateDirectory) -> None:
    """Removes an environment, its marker first: a half-removed one is not trusted. Raises EnvironmentFailed."""
    root = Path(installed.root)
    if root.parent != state.environments:
        raise EnvironmentFailed(f"{root} is not one of our environments", hint="`modelyard engines` lists them")
    with _alone(root, lambda _: None):
        (root / MARKER).unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        raise EnvironmentFailed(f"{root} could not be removed whole", hint="look at its owner and permissions")


def _ours(requirements: Requirements, engine_name: str) -> Installed:
    """An engine without packages runs in our own interpreter."""
    return Installed(
        engine=engine_name,
        version=requirements.version,
        python=sys.executable,
        root=sys.prefix,
        lock_sha256=sha256_of([requirements.version]),
    )


def _key(requirements: Requirements) -> str:
    python = [platform.python_implementation(), platform.python_version(), sys.platform, platform.machine()]
    return sha256_of([sorted(requirements.packages), python])[:12]


def _read(root: Path) -> Installed | None:
    """None where it is not whole, was copied from elsewhere, or its interpreter is gone."""
    try:
        found = decode((root / MARKER).read_bytes(), _Complete).installed
    except (OSError, UnreadableRecord):
        return None
    return found if found.root == str(root) and Path(found.python).exists() else None


def _make(requirements: Requirements, engine_name: str, root: Path, uv: Uv, on_progress: OnProgress) -> Installed:
    _check_disk(requirements, root)
    on_progress(InstallProgress("environment"))
    python = uv.venv(root)
    on_progress(InstallProgress("packages", 0.0))
    whole = max(1, requirements.installed_bytes)
    uv.install(
        python, requirements.packages, lambda done: on_progress(InstallProgress("packages", min(1, done / whole)))
    )
    freeze = uv.freeze(python)
    if unasked := gpu_packages(freeze):
        raise EnvironmentFailed(
            f"the CPU environment of {engine_name} got GPU packages: {', '.join(unasked)}",
            hint="an extra index serves GPU builds under the same version: take it out of the index settings",
        )
    on_progress(InstallProgress("check"))
    import_module(python, requirements.import_check, root)
    installed = Installed(
        engine=engine_name,
        version=requirements.version,
        python=str(python),
        root=str(root),
        lock_sha256=sha256_of(freeze),
    )
    complete = _Complete(installed=installed, packages=requirements.packages, freeze=freeze, made_at=time.time())
    write_atomically(root / MARKER, encode(complete))
    return installed


def _check_disk(requirements: Requirements, root: Path) -> None:
    needed = int(requirements.installed_bytes * _DISK_FACTOR) + requirements.download_bytes
    free = disk_free_bytes(root)
    if free < needed:
        raise EnvironmentFailed(
            f"the disk of {root.parent} has {show(free)} free, the environment needs {show(needed)}",
            hint="free some space, or set MODELYARD_STATE to a folder on another disk",
        )


@contextlib.contextmanager
def _alone(root: Path, on_progress: OnProgress) -> Generator[int]:
    """The lock of one environment, as a descriptor that uv inherits: it lasts until the last process that writes there
    is gone, also when the one that took it was killed. (`state.locked` ends with its holder alone.)"""
    descriptor = os.open(root.parent / f".{root.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress(InstallProgress("waiting for another installation"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
