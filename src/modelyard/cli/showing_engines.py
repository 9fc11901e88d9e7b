"""What `modelyard engines` shows: builds with their sizes, what is installed and proved here, what a doctor found."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from modelyard.engines.builds import builds
from modelyard.engines.contract import Build, Capabilities, Engine, Installed, Requirements
from modelyard.hardware.machine import disk_free_bytes
from modelyard.node.diagnosis import Diagnosis
from modelyard.node.environments import folder_of, list_environments
from modelyard.node.installed_files import size_bytes
from modelyard.records.base import Record
from modelyard.spec.sizes import show
from modelyard.state import StateDirectory
from modelyard.verify.evidence import latest


class BuildHere(Record):
    """One build on this machine. `older` are environments that another version of Modelyard, or another Python, made;
    `proved` are deployments with valid evidence that was taken with this very installation."""

    build: Build
    version: str
    download_bytes: int
    installed_bytes: int
    built_in: bool
    installed: Installed | None = None
    disk_bytes: int = 0
    older: tuple[Installed, ...] = ()
    proved: tuple[str, ...] = ()


class EngineHere(Record):
    """An item of `engines list --json`."""

    name: str
    capabilities: Capabilities
    installed: Installed | None
    builds: tuple[BuildHere, ...]


def look(engines: Iterable[Engine], state: StateDirectory) -> tuple[EngineHere, ...]:
    """Every engine in every build."""
    environments, proved = list_environments(state), _proved(state)
    found: list[EngineHere] = []
    for engine in engines:
        own = [one for one in environments if one.engine == engine.name]
        shown = tuple(_build(engine, requirements, own, proved, state) for requirements in builds(engine))
        installed = next((one.installed for one in shown if one.installed is not None), None)
        found.append(EngineHere(name=engine.name, capabilities=engine.capabilities, installed=installed, builds=shown))
    return tuple(found)


def cells(engine: EngineHere, build: BuildHere) -> tuple[str, ...]:
    """A row of the table that people see."""
    older = f" ({len(build.older)} older)" if build.older else ""
    installed = "built in" if build.built_in else "yes" if build.installed else "no"
    takes = build.disk_bytes or build.installed_bytes
    return (
        engine.name,
        build.build,
        build.version,
        installed + older,
        show(build.download_bytes) if not build.built_in else "",
        show(takes) if not build.built_in else "",
        ", ".join(build.proved),
        ", ".join(sorted(engine.capabilities.formats)),
    )


def price(name: str, requirements: Requirements, state: StateDirectory) -> str:
    """What an installation costs, before it begins."""
    return (
        f"{name} {requirements.version} ({requirements.build}): about {show(requirements.download_bytes)} to download,"
        f" {show(requirements.installed_bytes)} installed; {show(disk_free_bytes(state.environments))} free"
        f" in {state.environments}"
    )


def told(diagnosis: Diagnosis) -> list[str]:
    """A doctor's findings, a line each."""
    one = diagnosis.installed
    lines = [f"{one.engine} {one.version} ({one.build}) in {one.root}"]
    lines += [f"  {'✓' if found.ok else '✗'} {found.question}: {found.answer}" for found in diagnosis.findings]
    return lines


def _build(
    engine: Engine,
    requirements: Requirements,
    own: Iterable[Installed],
    proved: dict[str, tuple[str, ...]],
    state: StateDirectory,
) -> BuildHere:
    root = str(folder_of(requirements, engine.name, state))
    of_build = [one for one in own if one.build == requirements.build]
    installed = next((one for one in of_build if one.root == root), None)
    return BuildHere(
        build=requirements.build,
        version=requirements.version,
        download_bytes=requirements.download_bytes,
        installed_bytes=requirements.installed_bytes,
        built_in=not requirements.packages,
        installed=installed,
        disk_bytes=size_bytes(Path(installed.root)) if installed is not None else 0,
        older=tuple(one for one in of_build if one.root != root),
        proved=proved.get(installed.fingerprint, ()) if installed is not None else (),
    )


def _proved(state: StateDirectory) -> dict[str, tuple[str, ...]]:
    """Fingerprints of engines -> deployments whose newest evidence is all green, not expired, and speaks for them."""
    now, found = time.time(), dict[str, tuple[str, ...]]()
    for folder in sorted(state.evidence.iterdir()):
        evidence = latest(state, folder.name)
        digests = {one.fingerprint.engine for one in evidence}
        if len(digests) == 1 and all(one.valid_for(one.fingerprint, now) for one in evidence):
            digest = digests.pop()
            found[digest] = (*found.get(digest, ()), folder.name)
    return found
