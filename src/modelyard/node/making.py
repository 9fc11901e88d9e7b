"""How an environment is made in its folder: packages from the lock, every file read once, imported, then marked."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from modelyard.engines.contract import Installed, Requirements
from modelyard.engines.locks import LockedPackage, gpu_packages, parse, pinned, public, render
from modelyard.errors import EnvironmentFailed
from modelyard.hardware.machine import disk_free_bytes
from modelyard.node.installed_files import Damage, damages, packages, records
from modelyard.node.installing import Uv, import_module
from modelyard.records.base import Record, encode
from modelyard.records.fingerprint import sha256_of
from modelyard.spec.sizes import show
from modelyard.state import write_atomically

MARKER = "complete.json"
LOCK = "requirements.lock"
# Beside the installed files: bytecode, and what uv unpacks while it still has the download.
_DISK_FACTOR = 1.3
_SHOWN_FILES = 5


@dataclass(frozen=True, slots=True)
class InstallProgress:
    """What is being done; `done_bytes` of about `whole_bytes` are unpacked, None where nothing is counted."""

    stage: str
    done_bytes: int | None = None
    whole_bytes: int | None = None

    @property
    def fraction(self) -> float | None:
        if self.done_bytes is None or not self.whole_bytes:
            return None
        return min(1.0, self.done_bytes / self.whole_bytes)

    @property
    def text(self) -> str:
        """For people: `packages 34 MiB of 252 MiB`."""
        if self.done_bytes is None or not self.whole_bytes:
            return self.stage
        return f"{self.stage} {show(min(self.done_bytes, self.whole_bytes))} of {show(self.whole_bytes)}"


OnProgress = Callable[[InstallProgress], None]


class Complete(Record, tag_field="schema", tag="environment/v1"):
    """The marker. `freeze` is what is installed; `records` has the hash of each package's own list of files (None in
    environments of earlier versions)."""

    installed: Installed
    packages: tuple[str, ...]
    freeze: tuple[str, ...]
    made_at: float
    records: dict[str, str] | None = None


def make(requirements: Requirements, engine_name: str, root: Path, uv: Uv, on_progress: OnProgress) -> Installed:
    """Everything from an empty folder to the marker. Raises EnvironmentFailed; cleaning up is the caller's."""
    _check_disk(requirements, root)
    python = _install(requirements, engine_name, root, uv, on_progress)
    # uv links files from its cache unread: one that a power cut or a hand has changed there is fetched again, once.
    if changed := {damage.package for damage in _damages(root, on_progress)}:
        uv.forget(*sorted(changed))
        shutil.rmtree(root)
        _install(requirements, engine_name, root, uv, on_progress)
        if left := [str(damage.path) for damage in _damages(root, on_progress)]:
            raise EnvironmentFailed(
                f"files differ from what their wheels say: {', '.join(left[:_SHOWN_FILES])}",
                hint="look at the disk's health, then try again",
            )
    freeze = uv.freeze(python)
    _check_packages(requirements, engine_name, freeze)
    on_progress(InstallProgress("import"))
    import_module(python, requirements.import_check, root)
    installed = Installed(
        engine=engine_name,
        version=requirements.version,
        python=str(python),
        root=str(root),
        lock_sha256=sha256_of(freeze),
        build=requirements.build,
    )
    complete = Complete(
        installed=installed,
        packages=requirements.packages,
        freeze=freeze,
        made_at=time.time(),
        records=records(root),
    )
    write_atomically(root / MARKER, encode(complete))
    return installed


def _install(requirements: Requirements, engine_name: str, root: Path, uv: Uv, on_progress: OnProgress) -> Path:
    """From nothing to all packages; returns the interpreter."""
    on_progress(InstallProgress("environment"))
    python = uv.venv(root)
    (root / LOCK).write_text(_for_this_index(requirements, engine_name, uv, python))
    whole = max(1, requirements.installed_bytes)
    on_progress(InstallProgress("packages", 0, whole))
    uv.install(python, root / LOCK, lambda done: on_progress(InstallProgress("packages", done, whole)))
    return python


def _damages(root: Path, on_progress: OnProgress) -> list[Damage]:
    return damages(packages(root), lambda done, whole: on_progress(InstallProgress("check", done, whole)))


def _for_this_index(requirements: Requirements, engine_name: str, uv: Uv, python: Path) -> str:
    """The lock for uv. To uv, hashes of `2.13.0` do not speak for `2.13.0+cpu`, which it prefers where an index has
    both: the line then names what the index at hand has. Its hashes are those of all builds of the version."""
    if not requirements.local_builds:
        return requirements.lock
    locked = parse(requirements.lock)
    pins = [f"{one.name}=={one.version}" for one in locked if one.name in requirements.local_builds]
    exact_pins = uv.offered(python, pins)
    _check_build(requirements, engine_name, exact_pins)
    _check_suffixes(requirements, exact_pins)
    offered = dict(pinned(pin).split("==") for pin in exact_pins)
    exact = [_at(one, offered.get(one.name, "")) for one in locked]
    return render(exact, head=f"{engine_name} ({requirements.build}), as the index had it")


def _check_suffixes(requirements: Requirements, pins: Iterable[str]) -> None:
    """On Linux the plain build of such a package is the one for GPUs: torch 2.14.1 takes 1.1 GB and then misses
    libcudnn.so.9. Better to say so before half a gigabyte is fetched."""
    plain = [pin for pin in pins if "+" not in pin]
    if requirements.build == "cpu" and sys.platform == "linux" and plain:
        raise EnvironmentFailed(
            f"the index has only the build for GPUs of {', '.join(plain)}",
            hint=f"name an index or a folder of wheels with {plain[0]}+cpu"
            " (MODELYARD_EXTRA_INDEX_URL, MODELYARD_FIND_LINKS)",
        )


def _at(package: LockedPackage, version: str) -> LockedPackage:
    """The package at `version`, if that is a build of the locked one."""
    return msgspec.structs.replace(package, version=version) if public(version) == package.version else package


def _check_build(requirements: Requirements, engine_name: str, pins: Iterable[str]) -> None:
    if requirements.build == "cpu" and (unasked := gpu_packages(pins)):
        raise EnvironmentFailed(
            f"the CPU environment of {engine_name} got GPU packages: {', '.join(unasked)}",
            hint="an extra index serves GPU builds under the same version: take it out of the index settings",
        )


def _check_packages(requirements: Requirements, engine_name: str, freeze: tuple[str, ...]) -> None:
    _check_build(requirements, engine_name, freeze)
    locked = {f"{one.name}=={public(one.version)}" for one in parse(requirements.lock)}
    if strange := [pin for pin in freeze if public(pinned(pin)) not in locked]:
        raise EnvironmentFailed(
            f"the environment of {engine_name} got what its lock does not name: {', '.join(strange)}",
            hint="look at the settings of uv (uv.toml, UV_*) for packages that it always installs",
        )


def _check_disk(requirements: Requirements, root: Path) -> None:
    needed = int(requirements.installed_bytes * _DISK_FACTOR) + requirements.download_bytes
    free = disk_free_bytes(root)
    if free < needed:
        raise EnvironmentFailed(
            f"the disk of {root.parent} has {show(free)} free, the environment needs {show(needed)}",
            hint="free some space, or set MODELYARD_STATE to a folder on another disk",
        )
