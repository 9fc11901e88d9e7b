"""Which build of an engine a machine takes: for CPUs alone, for NVIDIA's GPUs or for AMD's."""

from __future__ import annotations

from typing import Protocol, cast, get_args, runtime_checkable

from modelyard.engines.contract import Build, Engine, Requirements
from modelyard.errors import UsageError

BUILDS: tuple[Build, ...] = get_args(Build)


@runtime_checkable
class ForGpus(Protocol):
    """An engine that exists in other builds beside the one in its `requirements`."""

    gpu_builds: tuple[Requirements, ...]


def builds(engine: Engine) -> tuple[Requirements, ...]:
    """Every build of an engine, the one for any machine first."""
    return (engine.requirements, *(engine.gpu_builds if isinstance(engine, ForGpus) else ()))


def choose_build(engine: Engine, *, suited: str | None = None, asked: str = "") -> Requirements:
    """The build that was asked for, or the one called `suited` (hosting.suited_build: what the machine calls for);
    where there is none of that name, the one for any machine. Raises UsageError with the builds that exist."""
    by_build = {one.build: one for one in builds(engine)}
    if not asked:
        return by_build.get(cast(Build, suited), engine.requirements)
    if asked not in by_build:
        known = asked in BUILDS
        raise UsageError(
            f"{engine.name} has no build for {asked}" if known else f"there is no build called {asked!r}",
            hint=f"builds of {engine.name}: {', '.join(by_build)}",
        )
    return by_build[cast(Build, asked)]
