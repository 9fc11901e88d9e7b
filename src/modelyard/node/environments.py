"""Engines' own installations: a venv each, made by uv, trusted only when it is whole.

A venv knows its own path (scripts, activation), so it is made where it will stay and not renamed into place. What makes
it count is the marker `complete.json`, written last and atomically; a folder without it is removed before the next
attempt. Packages are the engine's whole closure as its lock has it: wheels with one of the locked hashes, without
dependencies. Nothing is pulled that the lock does not name, and no package's code runs at installation."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

from modelyard import settings
from modelyard.engines.contract import Installed, Requirements
from modelyard.engines.locks import flaws, pinned
from modelyard.errors import EnvironmentFailed
from modelyard.node import package_cache
from modelyard.node.installing import Uv
from modelyard.node.making import MARKER, Complete, InstallProgress, OnProgress, make
from modelyard.node.pinning import no_lock, with_lock
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.fingerprint import sha256_of
from modelyard.settings import PackageIndex
from modelyard.state import StateDirectory


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

    `environ` is what children may inherit (the settings' if None). Raises EnvironmentFailed and then leaves nothing but
    the packages that were fetched whole: the next attempt does not fetch them again."""
    if not requirements.packages:
        return _ours(requirements, engine_name)
    requirements = with_lock(requirements, engine_name, state)
    if requirements.pinned_here and not requirements.lock:
        raise no_lock(requirements, engine_name)
    root = folder_of(requirements, engine_name, state)
    if (found := read_marker(root)) is not None:
        return found.installed
    if wrong := flaws(requirements):
        raise EnvironmentFailed(
            f"the lock of {engine_name} ({requirements.build}) is not sound: {wrong[0]}",
            hint="this is a fault of this version of Modelyard: please report it",
        )
    inherited = settings.load().environ if environ is None else environ
    with _alone(root, on_progress) as lock:
        if (found := read_marker(root)) is not None:
            return found.installed
        sweep(state)
        shutil.rmtree(root, ignore_errors=True)
        with package_cache.use(state.package_cache, inherited) as cache:
            uv = Uv(index, inherited, cache.folder, (lock, cache.lock))
            try:
                installed = make(requirements, engine_name, root, uv, on_progress)
            except BaseException:
                shutil.rmtree(root, ignore_errors=True)
                raise
            if cache.is_ours_alone():
                # What cannot be tidied now is tidied another time; the environment is made.
                with contextlib.suppress(EnvironmentFailed):
                    uv.prune()
            return installed


def folder_of(requirements: Requirements, engine_name: str, state: StateDirectory) -> Path:
    """Where this build lies for the Python that runs us, whether it is there or not."""
    requirements = with_lock(requirements, engine_name, state)
    python = [platform.python_implementation(), platform.python_version(), sys.platform, platform.machine()]
    key = sha256_of([*requirements.packages, requirements.lock, *python])[:12]
    return state.environments / f"{engine_name}-{requirements.build}-{key}"


def list_environments(state: StateDirectory, *, also_lost: bool = False) -> tuple[Installed, ...]:
    """The complete ones, by folder name; `also_lost`: those too whose Python is gone meanwhile."""
    roots = sorted(state.environments.iterdir())
    return tuple(found.installed for root in roots if (found := _marker(root)) and (also_lost or _has_python(found)))


def remove(installed: Installed, state: StateDirectory, *, environ: Mapping[str, str] | None = None) -> None:
    """Removes an environment, its marker first: a half-removed one is not trusted. What no other environment has goes
    from our package cache too. Raises EnvironmentFailed."""
    root = Path(installed.root)
    if root.parent != state.environments:
        raise EnvironmentFailed(f"{root} is not one of our environments", hint="`modelyard engines list` shows them")
    with _alone(root, lambda _: None):
        made = _marker(root)
        (root / MARKER).unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        raise EnvironmentFailed(f"{root} could not be removed whole", hint="look at its owner and permissions")
    others = [names_in(found) for root in state.environments.iterdir() if (found := read_marker(root))]
    inherited = settings.load().environ if environ is None else environ
    with package_cache.use(state.package_cache, inherited) as cache:
        uv = Uv(PackageIndex(), inherited, cache.folder, (cache.lock,))
        if cache.ours and not others:
            uv.forget()
        elif cache.ours and made and (unused := names_in(made).difference(*others)):
            uv.forget(*sorted(unused))


def names_in(made: Complete) -> set[str]:
    """Names of the packages in an environment."""
    return {pinned(pin).partition("==")[0] for pin in made.freeze}


def sweep(state: StateDirectory) -> tuple[Path, ...]:
    """Removes environments that were begun and given up; returns their folders. One that is being made is left."""
    gone: list[Path] = []
    for root in state.environments.iterdir():
        if not root.is_dir() or (root / MARKER).exists():
            continue
        with contextlib.suppress(BlockingIOError), _alone(root, None):
            if not (root / MARKER).exists():
                shutil.rmtree(root, ignore_errors=True)
                gone.append(root)
    return tuple(gone)


def read_marker(root: Path) -> Complete | None:
    """None unless the environment was finished, in this place, and still has its Python."""
    found = _marker(root)
    return found if found is not None and _has_python(found) else None


def _marker(root: Path) -> Complete | None:
    try:
        found = decode((root / MARKER).read_bytes(), Complete)
    except (OSError, UnreadableRecord):
        return None
    return found if found.installed.root == str(root) else None


def _has_python(made: Complete) -> bool:
    return Path(made.installed.python).exists()


def _ours(requirements: Requirements, engine_name: str) -> Installed:
    """An engine without packages runs in our own interpreter."""
    return Installed(
        engine=engine_name,
        version=requirements.version,
        python=sys.executable,
        root=sys.prefix,
        lock_sha256=sha256_of([requirements.version]),
    )


@contextlib.contextmanager
def _alone(root: Path, on_progress: OnProgress | None) -> Generator[int]:
    """The lock of one environment, as a descriptor that uv inherits: it lasts until the last process that writes there
    is gone, also when the one that took it was killed. (`state.locked` ends with its holder alone.)

    Without `on_progress` it does not wait: raises BlockingIOError."""
    descriptor = os.open(root.parent / f".{root.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_progress is None:
                raise
            on_progress(InstallProgress("waiting for another installation"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
