"""What an engine says about machines: what its builds need beside a processor, and how fast its kernels are on one.

Both are optional beside `Engine`: a build of which nothing is said needs the processor that `Capabilities.machines`
names, on Linux, and an accelerator where its name says so."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from modelyard.engines.builds import BUILDS, builds, choose_build
from modelyard.engines.contract import Engine, Installed, Requirements
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.builds import BuildFit, BuildNeeds, fitting_build
from modelyard.hardware.machine import Machine
from modelyard.records.base import Record


@runtime_checkable
class Demanding(Protocol):
    """An engine that knows more of what one of its builds needs."""

    build_needs: tuple[BuildNeeds, ...]


@runtime_checkable
class Gauged(Protocol):
    """An engine whose kernels can be measured without a model."""

    def gauge(self, install: Installed, threads: int, buffer_bytes: int) -> tuple[str, ...]:
        """The command that measures with `threads` threads and weights of `buffer_bytes`, which lie beyond the caches
        and fit into a quarter of the free memory. The last line of its standard output is the JSON of
        hardware.rates.Rounds, the lines before say what it is doing."""
        ...


def suited_build(engine: Engine, machine: Machine, python: str) -> BuildFit:
    """The build of this engine for this machine and Python `python` (`3.12.1`): one for accelerators before the one for
    processors alone, and why the others are not taken."""
    first, *for_accelerators = builds(engine)
    offered = (_needs(engine, one.build) for one in (*for_accelerators, first))
    return fitting_build(offered, machine, python)


class Devices(Record):
    """On what an engine computes here: by which build, and the accelerators that are free for it (none on a processor).
    `missing` says why that build cannot be used; empty where it can."""

    build: str = "cpu"
    accelerators: tuple[Accelerator, ...] = ()
    missing: str = ""


ON_PROCESSORS = Devices()


def devices_here(
    engine: Engine,
    machine: Machine,
    python: str,
    *,
    asked: str = "",
    held: frozenset[tuple[str, int]] = frozenset(),
) -> Devices:
    """The devices of the build that `requirements_here` installs. `held` are accelerators of other deployments, as
    build and index. Raises UsageError where no build at all is called as was asked."""
    offered = {one.build for one in builds(engine)}
    if asked and asked in BUILDS and asked not in offered:
        return Devices(build=asked, missing=f"has no build for {asked}")
    build = requirements_here(engine, machine, python, asked=asked).build
    if build == "cpu":
        return ON_PROCESSORS
    fit = fitting_build([_needs(engine, build)], machine, python)
    if fit.build is None:
        return Devices(build=build, missing=f"build {fit.reason}")
    free = tuple(one for one in fit.accelerators if (build, one.index) not in held)
    taken = f"all {len(fit.accelerators)} accelerators for {build} are taken by other deployments"
    return Devices(build=build, accelerators=free, missing="" if free else taken)


def _needs(engine: Engine, build: str) -> BuildNeeds:
    known = {needs.build: needs for needs in engine.build_needs} if isinstance(engine, Demanding) else {}
    return known.get(build) or BuildNeeds(build=build, machines=engine.capabilities.machines)


def requirements_here(engine: Engine, machine: Machine, python: str, *, asked: str = "") -> Requirements:
    """The environment to make of this engine on this machine: the build that was `asked` for, else the suited one, and
    where none is suited the one for any machine, whose installation then says what is missing. Raises UsageError."""
    return choose_build(engine, suited=suited_build(engine, machine, python).build, asked=asked)
