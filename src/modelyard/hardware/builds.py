"""Which build of an engine fits this machine: pure."""

from __future__ import annotations

from collections.abc import Iterable

from modelyard.hardware.accelerator import Accelerator, version_of
from modelyard.hardware.machine import Machine
from modelyard.records.base import Record
from modelyard.records.plan import Rejected

# A build that is named after a runtime runs on that vendor's accelerators; any other name runs on the CPU.
VENDOR_OF = {"cuda": "nvidia", "rocm": "amd", "cann": "ascend", "metal": "apple", "xpu": "intel"}
_RUNTIME_OF = {"cuda": "CUDA", "rocm": "ROCm", "cann": "CANN", "metal": "Metal", "xpu": "oneAPI"}


class BuildNeeds(Record):
    """What a build of an engine takes to run. `machines` are the processor architectures that it is made for, each with
    the instruction sets that every processor must have; `pythons` are the first and the last minor version that it has
    wheels for.

    Of a vendor's accelerators at least one must have `least_architecture` (compared as a version) or be one of
    `architectures`, and its driver must serve `least_runtime`; empty demands nothing."""

    build: str
    machines: dict[str, frozenset[str]]
    systems: frozenset[str] = frozenset({"linux"})
    pythons: tuple[str, str] = ("3.11", "3.13")
    least_architecture: str = ""
    architectures: frozenset[str] = frozenset()
    least_runtime: str = ""


class BuildFit(Record):
    """`build` is None where none fits. `accelerators` are those that it can use, none for the CPU."""

    build: str | None
    reason: str
    accelerators: tuple[Accelerator, ...] = ()
    rejected: tuple[Rejected, ...] = ()


def fitting_build(offered: Iterable[BuildNeeds], machine: Machine, python: str) -> BuildFit:
    """The first of `offered`, in the engine's order of preference, that runs on `machine` with Python `python`
    (`3.12.1`); and why those before it do not. What a driver does not say is not held against it."""
    rejected: list[Rejected] = []
    for needs in offered:
        able = _able(needs, machine)
        reason = _unfit(needs, machine, python) or _unable(needs, machine, able)
        if reason is None:
            return BuildFit(build=needs.build, reason=_because(able), accelerators=able, rejected=(*rejected,))
        rejected.append(Rejected(what=f"build {needs.build}", reason=reason))
    why = "; ".join(f"{one.what.removeprefix('build ')}: {one.reason}" for one in rejected)
    return BuildFit(build=None, reason=why or "it has no build", rejected=tuple(rejected))


def _unfit(needs: BuildNeeds, machine: Machine, python: str) -> str | None:
    if machine.os not in needs.systems:
        return f"runs on {', '.join(sorted(needs.systems))}, this is {machine.os}"
    # macOS has its own name for it.
    arch = "aarch64" if machine.arch == "arm64" else machine.arch
    if arch not in needs.machines:
        return f"is built for {', '.join(sorted(needs.machines))}, this is {machine.arch}"
    if missing := sorted(needs.machines[arch] - set(machine.isa)):
        return f"needs {', '.join(missing)}, which this processor does not have"
    first, last = needs.pythons
    if not version_of(first) <= version_of(python)[:2] <= version_of(last):
        return f"has wheels for Python {first} to {last}, this is {python}"
    return None


def _unable(needs: BuildNeeds, machine: Machine, able: tuple[Accelerator, ...]) -> str | None:
    """Why no accelerator of the build's vendor can run it; None for the CPU, or where one can."""
    vendor = VENDOR_OF.get(needs.build)
    if vendor is None or able:
        return None
    there = [one for one in machine.accelerators if one.vendor == vendor]
    if not there:
        return f"no {vendor} accelerator is here"
    return "; ".join(dict.fromkeys(_short_of(needs, one) or "" for one in there))


def _able(needs: BuildNeeds, machine: Machine) -> tuple[Accelerator, ...]:
    vendor = VENDOR_OF.get(needs.build)
    return tuple(one for one in machine.accelerators if one.vendor == vendor and _short_of(needs, one) is None)


def _short_of(needs: BuildNeeds, one: Accelerator) -> str | None:
    """What `one` lacks for the build, and where that can be changed, how."""
    if not one.healthy:
        return f"{one.name} is not healthy"
    if one.runtime and version_of(one.runtime) < version_of(needs.least_runtime):
        runtime = _RUNTIME_OF[needs.build]
        return (
            f"needs {runtime} {needs.least_runtime}, the driver {one.driver} of {one.name} serves {runtime} "
            f"{one.runtime}: update the driver"
        )
    if not one.architecture:
        return None
    if needs.architectures and one.architecture not in needs.architectures:
        return f"has no kernels for {one.name} ({one.architecture})"
    if needs.least_architecture and version_of(one.architecture) < version_of(needs.least_architecture):
        return f"needs compute capability {needs.least_architecture}, {one.name} has {one.architecture}"
    return None


def _because(able: tuple[Accelerator, ...]) -> str:
    if not able:
        return "it runs on this processor"
    names = [one.partition or one.name for one in able]
    return " and ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
