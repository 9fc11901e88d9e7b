"""What a tree of processes costs, read from the kernel: CPU nanoseconds, resident memory, time waiting for a core.

Linux only. CPU comes from each process's CPU clock (`clock_getcpuclockid(3)`): nanoseconds, all threads, finished ones
included; the ticks of /proc/PID/stat are a hundred thousand times coarser."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

CPUCLOCK_SCHED = 2


def tree(root_pid: int) -> frozenset[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(stat.rpartition(")")[2].split()[1])  # the name before it may hold spaces and brackets
            children.setdefault(parent, []).append(int(folder.name))
    found, open_ = set[int](), [root_pid]
    while open_:
        pid = open_.pop()
        found.add(pid)
        open_ += children.get(pid, [])
    return frozenset(found)


def cpu_ns(pids: Iterable[int]) -> int:
    """User and system time since each process began. Raises OSError where one has ended."""
    return sum(time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED) for pid in pids)


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory; pages shared between the processes count once for each."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def waited_ns(pid: int, thread: int | None = None) -> int:
    """How long a thread (the main one by default) was ready to run while other programs had the cores."""
    with open(f"/proc/{pid}/task/{thread or pid}/schedstat") as file:
        return int(file.read().split()[1])


class Neighbours:
    """How much of the machine programs that are not ours took since this was made."""

    def __init__(self) -> None:
        self._began_s, self._foreign_s = time.monotonic(), self._now()

    def cores_taken(self) -> float:
        """The mean number of cores; to be asked while our children still run."""
        return max(self._now() - self._foreign_s, 0) / (time.monotonic() - self._began_s)

    @staticmethod
    def _now() -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy_s - cpu_ns(tree(os.getpid())) / 1e9


def note_on_neighbours(cores_taken: float) -> str:
    """What to say about it under a table."""
    advice = "" if cores_taken < 0.1 else ": too many for figures that anybody should quote"
    return f"other programs took {cores_taken:.2f} of {len(os.sched_getaffinity(0))} cores meanwhile{advice}"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
