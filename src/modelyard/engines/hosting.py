"""What an engine says about machines: which builds of it there are, and how fast its kernels are on one.

Both are optional beside `Engine`: an engine without builds is taken to run wherever its packages install."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from modelyard.engines.contract import Installed
from modelyard.hardware.builds import Build


@runtime_checkable
class Built(Protocol):
    """An engine that is packaged in more than one way, or not for every machine; the preferred build stands first."""

    builds: tuple[Build, ...]


@runtime_checkable
class Gauged(Protocol):
    """An engine whose kernels can be measured without a model."""

    def gauge(self, install: Installed, threads: int, memory_bytes: int) -> tuple[str, ...]:
        """The command that measures with `threads` threads in at most `memory_bytes`. It ends within a minute; the last
        line of its standard output is the JSON of hardware.rates.Rounds, the lines before say what it is doing."""
        ...
