"""Is an environment still as it was made? Each question has an answer in words and, where it is no, a remedy."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modelyard.engines.contract import Installed, Requirements
from modelyard.engines.locks import pinned
from modelyard.errors import EnvironmentFailed
from modelyard.node.environments import ensure, read_marker
from modelyard.node.installed_files import Damage, Package, damages, packages
from modelyard.node.installing import import_module
from modelyard.node.making import MARKER, Complete, InstallProgress, OnProgress
from modelyard.records.base import Record
from modelyard.settings import PackageIndex
from modelyard.spec.sizes import show
from modelyard.state import StateDirectory

_ALIVE_TIMEOUT_S = 20.0
_SHOWN = 5


class Finding(Record):
    """One answer."""

    question: str
    ok: bool
    answer: str


class Diagnosis(Record):
    """All that was found of one environment."""

    installed: Installed
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        return all(one.ok for one in self.findings)


def examine(installed: Installed, requirements: Requirements | None, on_progress: OnProgress) -> Diagnosis:
    """Looks at every file: reads as many bytes as the environment has. `requirements` are those of the build (None
    where this version of ours has no such build): they say what to import."""
    root = Path(installed.root)
    made = read_marker(root)
    if made is None:
        lost = Finding(question="interpreter", ok=False, answer=f"{installed.python} is gone")
        return Diagnosis(installed=installed, findings=(lost,))
    here = packages(root)
    findings = [_interpreter(installed), _versions(made, here), _files(made, here, on_progress)]
    if findings[0].ok and requirements is not None:
        on_progress(InstallProgress("import"))
        findings.append(_import(installed, requirements))
    return Diagnosis(installed=installed, findings=tuple(findings))


def repair(
    found: Diagnosis,
    requirements: Requirements,
    state: StateDirectory,
    index: PackageIndex,
    on_progress: OnProgress,
    *,
    environ: Mapping[str, str],
) -> Installed:
    """Makes the environment anew; of what lies in the package cache only what was damaged is fetched again. Raises
    EnvironmentFailed."""
    engine_name = found.installed.engine
    # Without its marker nobody trusts it, and whoever makes it next begins from nothing.
    (Path(found.installed.root) / MARKER).unlink(missing_ok=True)
    return ensure(requirements, engine_name, state, index, on_progress, environ=environ)


def _interpreter(installed: Installed) -> Finding:
    command = [installed.python, "-I", "-c", "import platform; print(platform.python_version())"]
    try:
        done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=_ALIVE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        answer = f"{installed.python} does not run: {error}"
        return Finding(question="interpreter", ok=False, answer=answer)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Finding(question="interpreter", ok=False, answer=f"{installed.python} does not run: {words[-1]}")
    return Finding(question="interpreter", ok=True, answer=f"Python {done.stdout.strip()} runs")


def _versions(made: Complete, here: Iterable[Package]) -> Finding:
    expected, found = {pinned(pin) for pin in made.freeze}, {pinned(one.pin) for one in here}
    missing, strange = sorted(expected - found), sorted(found - expected)
    if not missing and not strange:
        return Finding(question="versions", ok=True, answer=f"{len(expected)} packages at the locked versions")
    told = [f"{_list(missing)} missing"] * bool(missing) + [f"{_list(strange)} not from the lock"] * bool(strange)
    return Finding(question="versions", ok=False, answer="; ".join(told))


def _files(made: Complete, here: Sequence[Package], on_progress: OnProgress) -> Finding:
    read = 0

    def heard(done: int, whole: int) -> None:
        nonlocal read
        read = done
        on_progress(InstallProgress("files", done, whole))

    found = damages(here, heard)
    found += [Damage(one.name, one.record, "changed") for one in here if not _is_as_made(one, made)]
    if not found:
        return Finding(question="files", ok=True, answer=f"{show(read)} as installed")
    return Finding(question="files", ok=False, answer=_list([f"{one.path} ({one.how})" for one in found]))


def _is_as_made(package: Package, made: Complete) -> bool:
    """Whether a package's list of files is the one that was installed: it vouches for all the others."""
    try:
        return (made.records or {}).get(package.pin) in (None, hashlib.sha256(package.record.read_bytes()).hexdigest())
    except OSError:
        return True  # told already: a package without its list


def _import(installed: Installed, requirements: Requirements) -> Finding:
    try:
        import_module(Path(installed.python), requirements.import_check, Path(installed.root))
    except EnvironmentFailed as error:
        return Finding(question="import", ok=False, answer=error.message)
    return Finding(question="import", ok=True, answer=f"{requirements.import_check} can be imported")


def _list(words: list[str]) -> str:
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
