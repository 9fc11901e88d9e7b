"""Lock files of engines: every package of an environment at one version, with the hashes of its wheels and no address.

The format is that of pip's requirements files, so that `pip install --require-hashes` could read them too. They lie
beside the adapters in `locks/`, named after engine and build, and are made by `.ci/lock_engines.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

from modelyard.engines.contract import Requirements
from modelyard.records.base import Record

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)(?:\s*;\s*(.+))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# Names that only the software of GPUs bears, and version suffixes of builds for one.
_GPU_NAME = re.compile(r"(nvidia|cuda|cupy|rocm|hip|amdsmi|flashinfer|xformers)(-|$)|(pytorch-)?triton(-rocm|-xpu)?$")
_GPU_SUFFIX = re.compile(r"\+(cu\d|rocm|xpu)")


class LockedPackage(Record):
    """`marker` says for which machines and Pythons it is (empty: for all); `sha256` has one hash for each wheel."""

    name: str
    version: str
    sha256: tuple[str, ...]
    marker: str = ""


class BadLock(ValueError):
    """A lock that says something else than names, versions and hashes."""


@cache
def shipped(name: str) -> str:
    """The text of `locks/NAME.txt`, which comes with us as our code does; empty where nobody has made it yet."""
    file = resources.files("modelyard.engines") / "locks" / f"{name}.txt"
    return file.read_text() if file.is_file() else ""


def parse(text: str) -> tuple[LockedPackage, ...]:
    """Raises BadLock for options, addresses, version ranges, and packages without a hash."""
    packages: list[LockedPackage] = []
    for statement in _statements(text):
        pin, *words = re.split(r"\s+(?=--hash)", statement)
        named, hashes = _PIN.fullmatch(pin), [_HASH.fullmatch(word) for word in words]
        if named is None or not all(hashes):
            raise BadLock(f"not a package with hashes: {statement[:80]}")
        if not hashes:
            raise BadLock(f"{pin} has no hash")
        name, version, marker = named.groups(default="")
        sha256 = tuple(found[1] for found in hashes if found)
        packages.append(LockedPackage(name=normalised(name), version=version, sha256=sha256, marker=marker))
    return tuple(packages)


def render(packages: Iterable[LockedPackage], *, head: str) -> str:
    """The text that `parse` reads; `head` becomes a comment."""
    lines = [f"# {line}" for line in head.splitlines()]
    for one in sorted(packages, key=lambda one: (one.name, one.version)):
        pin = f"{one.name}=={one.version}" + (f" ; {one.marker}" if one.marker else "")
        lines.append(" \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in sorted(one.sha256))]))
    return "\n".join(lines) + "\n"


def flaws(requirements: Requirements) -> list[str]:
    """Why the lock cannot be trusted to be what the adapter asks for; empty where it can."""
    if not requirements.lock:
        return ["it has no lock"]
    try:
        packages = parse(requirements.lock)
    except BadLock as error:
        return [str(error)]
    locked = {f"{one.name}=={one.version}" for one in packages}
    of_some_build = {f"{one.name}=={public(one.version)}" for one in packages if one.name in requirements.local_builds}
    asked = {pinned(package) for package in requirements.packages}
    found = [f"{package} is not in the lock" for package in sorted(asked - locked - of_some_build)]
    unwanted = {normalised(name) for name in requirements.without}
    found += [f"{one.name} is in the lock and was to be left out" for one in packages if one.name in unwanted]
    if requirements.build == "cpu":
        found += [f"{package} is for GPUs" for package in gpu_packages(locked)]
    return found


def gpu_packages(packages: Iterable[str]) -> list[str]:
    """Those of `name==version` that only a GPU needs: in a CPU environment they are gigabytes of a wrong build."""
    named = (pin for pin in packages if _GPU_NAME.match(normalised(pin.partition("==")[0])) or _GPU_SUFFIX.search(pin))
    return sorted(named)


def pinned(requirement: str) -> str:
    """`name==version` with the name as indexes compare names."""
    name, _, version = requirement.partition("==")
    return f"{normalised(name)}=={version}"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def public(version: str) -> str:
    """A version without its local suffix: `2.13.0` of `2.13.0+cpu`."""
    return version.partition("+")[0]


def _statements(text: str) -> Iterable[str]:
    """Logical lines: continued ones joined, comments and empty ones left out."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if (statement := line.strip()) and not statement.startswith("#"):
            yield statement
