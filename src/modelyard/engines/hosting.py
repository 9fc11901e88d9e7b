"""What an engine says about machines: what its builds need beside a processor, and how fast its kernels are on one.

Both are optional beside `Engine`: a build of which nothing is said needs the processor that `Capabilities.machines`
names, on Linux, and an accelerator where its name says so."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from modelyard.engines.builds import builds, choose_build
from modelyard.engines.contract import Engine, Installed, Requirements
from modelyard.hardware.builds import BuildFit, BuildNeeds, fitting_build
from modelyard.hardware.machine import Machine


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
    known = {needs.build: needs for needs in engine.build_needs} if isinstance(engine, Demanding) else {}
    offered = (
        known.get(one.build) or BuildNeeds(build=one.build, machines=engine.capabilities.machines)
        for one in (*for_accelerators, first)
    )
    return fitting_build(offered, machine, python)


def requirements_here(engine: Engine, machine: Machine, python: str, *, asked: str = "") -> Requirements:
    """The environment to make of this engine on this machine: the build that was `asked` for, else the suited one, and
    where none is suited the one for any machine, whose installation then says what is missing. Raises UsageError."""
    return choose_build(engine, suited=suited_build(engine, machine, python).build, asked=asked)
