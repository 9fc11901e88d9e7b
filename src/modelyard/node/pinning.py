"""Locks made here, for builds whose wheels are on no index that ours are made from: what the operator's index has now
is written down with its hashes, and from then on nothing else is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from modelyard.engines.contract import Requirements
from modelyard.engines.locks import LockedPackage, flaws, parse, render
from modelyard.errors import EnvironmentFailed
from modelyard.node import package_cache
from modelyard.node.installing import Uv
from modelyard.settings import PackageIndex
from modelyard.state import StateDirectory, write_atomically

_HEAD = """{engine} {version} for {build}: every package of the environment, with the hashes of its wheels.
Made on this machine by `modelyard engines pin {engine} --build {build}`."""


_INDEX_HINT = "look at the index settings (MODELYARD_EXTRA_INDEX_URL, MODELYARD_FIND_LINKS)"


def with_lock(requirements: Requirements, engine_name: str, state: StateDirectory) -> Requirements:
    """The build with its lock: the one that comes with us, else the one that was made here, if any."""
    if not requirements.pinned_here:
        return requirements
    try:
        return msgspec.structs.replace(requirements, lock=lock_file(requirements, engine_name, state).read_text())
    except FileNotFoundError:
        return requirements


def lock_file(requirements: Requirements, engine_name: str, state: StateDirectory) -> Path:
    return state.locks / f"{engine_name}-{requirements.build}.txt"


def no_lock(requirements: Requirements, engine_name: str) -> EnvironmentFailed:
    """What there is to say where neither is there."""
    named = f"{engine_name} {requirements.version}"
    return EnvironmentFailed(
        f"no package index that comes with Python has {named} for {requirements.build}, so there is no lock of it",
        hint=f"name an index that has it in MODELYARD_EXTRA_INDEX_URL, then: "
        f"modelyard engines pin {engine_name} --build {requirements.build}; or set MODELYARD_BUILD=cpu",
    )


def pin(
    requirements: Requirements,
    engine_name: str,
    state: StateDirectory,
    index: PackageIndex,
    *,
    environ: Mapping[str, str],
) -> tuple[LockedPackage, ...]:
    """Resolves the build for the Python that runs us from the indexes of the settings and keeps the lock. Downloads no
    more than what packages say of themselves.

    Raises EnvironmentFailed where an index does not have it, or has it for other accelerators only."""
    with package_cache.use(state.package_cache, environ) as cache:
        uv = Uv(index, environ, cache.folder, (cache.lock,))
        packages = parse(uv.closure(requirements.packages, without=requirements.without))
    if other := [one for one in packages if one.name in requirements.local_builds and not _is_for(one, requirements)]:
        raise EnvironmentFailed(
            f"the index has {other[0].name} {other[0].version}, and that is no build for {requirements.build}",
            hint=f"name an index with {other[0].name}=={requirements.version}+{requirements.build}... "
            "in MODELYARD_EXTRA_INDEX_URL",
        )
    head = _HEAD.format(engine=engine_name, version=requirements.version, build=requirements.build)
    lock = render(packages, head=head)
    if wrong := flaws(msgspec.structs.replace(requirements, lock=lock)):
        raise EnvironmentFailed(f"what the index has is not what {engine_name} needs: {wrong[0]}", hint=_INDEX_HINT)
    file = lock_file(requirements, engine_name, state)
    file.parent.mkdir(exist_ok=True, mode=0o700)
    write_atomically(file, lock.encode())
    return packages


def _is_for(package: LockedPackage, requirements: Requirements) -> bool:
    """A build's name stands at the beginning of the local part of its version: `0.32.0+rocm721`."""
    return package.version.partition("+")[2].startswith(requirements.build)
