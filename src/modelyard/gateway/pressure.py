"""How near a worker is to its limits: what it reads of itself at each sweep."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from modelyard.gateway.overload import CALM, NO_READINGS, OVERLOAD, OverloadLimits, Readings, ladder
from modelyard.hardware.cgroup import allowance

# A worker with 200 streams takes 60 MiB; its bounds on bodies, queues and buffers, all used at once, far more than most
# machines have. Its memory is ours to limit before it is the kernel's: engines share the control group, so that how
# full that is says nothing of the gateway.
MEMORY_BYTES = 1 << 30
MEMORY_PART = 0.25
# Of the descriptors: those turned away for a moment, files, listeners, idle connections to engines.
RESERVED_DESCRIPTORS = 96
_NO_LIMIT = 1 << 60
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory_limit_bytes() -> int:
    """1 GiB, or a quarter of what the machine or the control group has where that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    return min(MEMORY_BYTES, int(MEMORY_PART * min(machine, allowance().memory_bytes or machine)))


def connections_at_most(wanted: int, descriptors: int) -> int:
    """Each connection of a client may need one to an engine."""
    return max(1, min(wanted, (descriptors - RESERVED_DESCRIPTORS) // 2))


def descriptor_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@dataclass(slots=True)
class Pressure:
    """The worker's level, and what it was decided from. A single late sweep is a stall that is over; the loop is too
    slow when two in a row are late."""

    memory_limit_bytes: int = _NO_LIMIT
    descriptors: int = _NO_LIMIT
    limits: OverloadLimits = OVERLOAD
    level: int = CALM
    readings: Readings = NO_READINGS
    _late_s: float = 0.0

    @classmethod
    def of_this_process(cls) -> Pressure:
        return cls(memory_limit_bytes(), descriptor_limit())

    def look(self, late_s: float) -> None:
        """Read what is used, decide the level. `late_s` is by how much this look comes later than it should."""
        lag_s, self._late_s = min(late_s, self._late_s), late_s
        self.readings = Readings(
            memory=_resident_bytes() / self.memory_limit_bytes,
            descriptors=_open_descriptors() / self.descriptors,
            lag_s=lag_s,
        )
        self.level = ladder(self.level, self.readings, self.limits)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        # No /proc here, or no descriptor left to read it with: the descriptors' own reading tells that.
        return 0


def _open_descriptors() -> int:
    try:
        # Linux 6.2 and later tell the number as the size; before, the folder has to be read.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        return 0
    except OSError:
        return descriptor_limit()
