"""What the control groups of this process allow, version 1 and 2, from its own up to the root: the tightest holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelyard.hardware.kernel_files import text_of

# Version 1 writes "no limit" as the largest multiple of the page size in 63 bits.
_UNLIMITED_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class Allowance:
    """None where no group sets a limit. `free_bytes` counts file caches that the kernel can drop as free."""

    cores: float | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None


def allowance(root: Path = Path("/")) -> Allowance:
    """The allowance of this process. `root` is where proc and sys are found (tests lay recorded trees elsewhere)."""
    found = [_of_folder(folder) for folder in _folders(root)]
    return Allowance(
        cores=min((one.cores for one in found if one.cores is not None), default=None),
        memory_bytes=min((one.memory_bytes for one in found if one.memory_bytes is not None), default=None),
        free_bytes=min((one.free_bytes for one in found if one.free_bytes is not None), default=None),
    )


def _folders(root: Path) -> Iterator[Path]:
    """Every group that this process is in, own groups first. Inside a container a group may be written as the host
    sees it and lead nowhere; the mount itself is then the group, and it comes last in any case."""
    for mount, group in mounted_groups(text_of(root / "proc/self/cgroup"), text_of(root / "proc/self/mounts")):
        inside = Path(group.strip("/"))
        for part in (inside, *inside.parents):
            if (folder := root / mount.strip("/") / part).is_dir():
                yield folder


def mounted_groups(cgroup: str, mounts: str) -> list[tuple[str, str]]:
    """(mount, group) of every hierarchy, from the texts of /proc/self/cgroup and /proc/self/mounts."""
    groups: dict[str, str] = {}
    for line in cgroup.splitlines():
        # `4:cpu,cpuacct:/a` in version 1; `0::/a`, with no controller named, in version 2.
        _, controllers, group = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), group)
    found: list[tuple[str, str]] = []
    for line in mounts.splitlines():
        _, mount, kind, options, *_ = line.split(" ")
        names = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        found += [(mount, group) for group in sorted({groups[name] for name in names if name in groups})]
    return found


def _of_folder(folder: Path) -> Allowance:
    """A folder has the files of one version only, so that asking for both finds one."""
    limit = memory_limit(text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes"))
    used = text_of(folder / "memory.current") or text_of(folder / "memory.usage_in_bytes")
    free = None
    if limit is not None and used.strip().isdigit():
        free = max(0, limit - int(used) + droppable_bytes(text_of(folder / "memory.stat")))
    quota = text_of(folder / "cpu.max")
    if not quota:
        quota = f"{text_of(folder / 'cpu.cfs_quota_us').strip()} {text_of(folder / 'cpu.cfs_period_us').strip()}"
    return Allowance(cores=core_limit(quota), memory_bytes=limit, free_bytes=free)


def memory_limit(text: str) -> int | None:
    """Bytes, from memory.max or memory.limit_in_bytes."""
    return int(text) if text.strip().isdigit() and int(text) < _UNLIMITED_BYTES else None


def core_limit(text: str) -> float | None:
    """Cores' worth of time per period, from `quota period` in microseconds (cpu.max's form)."""
    match text.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            return int(quota) / int(period)
        case _:
            return None


def droppable_bytes(stat: str) -> int:
    """File cache that nobody has used for a while, from memory.stat; version 1 counts subgroups in `total_`."""
    values = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)
