"""Whether the kernel has killed for want of memory: its counter for our control group, or for the machine."""

from __future__ import annotations

import os


class OomCounter:
    """Tells whether the kernel's counter rose since the last look. A counter that cannot be read never rises."""

    def __init__(self) -> None:
        self._path = next((path for path in _candidates() if _read(path) is not None), None)
        self._seen = self._now()

    def rose(self) -> bool:
        before, self._seen = self._seen, self._now()
        return self._seen > before

    def _now(self) -> int:
        return (_read(self._path) or 0) if self._path else 0


def _candidates() -> list[str]:
    """Control groups v2, v1, and the whole machine for processes in the root group."""
    found = list[str]()
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file:
                _, controllers, group = line.rstrip("\n").split(":", 2)
                if controllers == "":
                    found.append(f"/sys/fs/cgroup{group}/memory.events")
                elif "memory" in controllers.split(","):
                    found.append(f"/sys/fs/cgroup/memory{group}/memory.oom_control")
                    found.append("/sys/fs/cgroup/memory/memory.oom_control")
    except OSError:
        pass
    return [*map(os.path.normpath, found), "/proc/vmstat"]


def _read(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
