"""Who else used our processors while we measured: /proc/stat, before and after."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from modelyard.hardware.kernel_files import text_of


@dataclass(frozen=True, slots=True)
class Times:
    """Ticks of the clock that our processors spent, and that this process and its children had of them."""

    whole: int
    idle: int
    stolen: int
    ours: float


def times(cpus: Set[int], root: Path = Path("/")) -> Times:
    used = os.times()
    ours = (used.user + used.system + used.children_user + used.children_system) * os.sysconf("SC_CLK_TCK")
    whole, idle, stolen = processor_times(text_of(root / "proc/stat"), cpus)
    return Times(whole, idle, stolen, ours)


def processor_times(stat: str, cpus: Set[int]) -> tuple[int, int, int]:
    """(whole, idle, stolen) ticks of `cpus` from /proc/stat. Its columns: user nice system idle iowait irq softirq
    steal guest guest_nice; time of guests stands in `user` too."""
    whole = idle = stolen = 0
    for line in stat.splitlines():
        name, *columns = line.split()[:9] or [""]
        number = name.removeprefix("cpu")
        if name == number or not number.isdigit() or int(number) not in cpus:
            continue
        ticks = [int(one) for one in columns if one.isdigit()]
        if len(ticks) < 8:
            continue
        whole, idle, stolen = whole + sum(ticks), idle + ticks[3] + ticks[4], stolen + ticks[7]
    return whole, idle, stolen


def shares(before: Times, after: Times) -> tuple[float | None, float | None]:
    """(stolen, others) as shares of our processors' time between the two; None where the kernel does not say."""
    whole = after.whole - before.whole
    if whole <= 0:
        return None, None
    stolen = after.stolen - before.stolen
    busy = whole - (after.idle - before.idle) - stolen
    others = max(0.0, busy - (after.ours - before.ours))
    return stolen / whole, min(1.0, others / whole)
