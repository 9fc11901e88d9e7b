"""What else a person or a planner asks of a machine: its layout, its control groups, what it runs inside of, its disk.

Nothing here is part of the fingerprint: evidence depends on `machine.Machine` alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from modelyard.hardware.cgroup import allowance
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.machine import disk_free_bytes
from modelyard.records.base import Record

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gpfs", "glusterfs", "beegfs", "9p", "fuse.sshfs"}
_MEMORY = {"tmpfs", "ramfs"}
# Linux is built for 8192 processors at most: a longer number is none of theirs.
_MOST_DIGITS = 4
# What a hypervisor writes where a maker writes its name.
_MAKERS = {
    "QEMU": "KVM",
    "Amazon EC2": "Amazon EC2",
    "Google": "Google Compute Engine",
    "Microsoft Corporation": "Hyper-V",
    "VMware": "VMware",
    "Xen": "Xen",
    "innotek": "VirtualBox",
}


class Disk(Record):
    """Where the state directory is. `kind` is what reads of it cost: `solid state`, `rotating`, `network`, `memory`;
    empty where the kernel does not say."""

    folder: str
    free_bytes: int
    file_system: str
    kind: str


class Details(Record):
    """`allowed` are the hardware threads that this process may run on (its affinity), `quota_cores` the cores' worth of
    time that its control groups leave it. `physical_cores`, `sockets` and `numa_nodes` count those that the allowed
    threads belong to; 0 where the kernel does not say."""

    online: int
    allowed: int
    quota_cores: float | None
    physical_cores: int
    sockets: int
    numa_nodes: int
    last_level_cache_bytes: int
    cgroups: str
    inside: tuple[str, ...]
    transparent_huge_pages: str
    swap_bytes: int
    shared_memory_bytes: int
    disk: Disk


def look(state_root: Path, root: Path = Path("/"), allowed: frozenset[int] | None = None) -> Details:
    """This machine's. `root` is where proc and sys are found (tests lay recorded trees elsewhere); `allowed` is this
    process's affinity where it is None."""
    cpus = root / "sys/devices/system/cpu"
    online = cpu_list(text_of(cpus / "online")) or frozenset(range(os.cpu_count() or 1))
    ours = (affinity() if allowed is None else allowed) & online or online
    cores = {place for cpu in ours if (place := _place(cpus / f"cpu{cpu}/topology")) is not None}
    nodes = [cpu_list(text_of(node / "cpulist")) for node in (root / "sys/devices/system/node").glob("node[0-9]*")]
    chosen = re.search(r"\[(\w+)\]", text_of(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    swap = re.search(r"^SwapTotal:\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return Details(
        online=len(online),
        allowed=len(ours),
        quota_cores=allowance(root).cores,
        physical_cores=len(cores),
        sockets=len({package for package, _ in cores}),
        numa_nodes=sum(bool(node & ours) for node in nodes),
        last_level_cache_bytes=_last_level_cache_bytes(cpus, ours),
        cgroups=cgroup_version(text_of(root / "proc/self/mounts")),
        inside=_inside(root),
        transparent_huge_pages=chosen.group(1) if chosen else "",
        swap_bytes=int(swap.group(1)) * 1024 if swap else 0,
        shared_memory_bytes=_size(root / "dev/shm"),
        disk=_disk(state_root, root, virtual=_virtual(root) != ""),
    )


def affinity() -> frozenset[int]:
    """The processors that this process may run on; empty where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def cpu_list(text: str) -> frozenset[int]:
    """`0-3,8` as the kernel writes it; what is not of that form is left out."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        bounds = [first, last or first]
        if all(one.isascii() and one.isdigit() and len(one) <= _MOST_DIGITS for one in bounds):
            found.update(range(int(bounds[0]), int(bounds[1]) + 1))
    return frozenset(found)


def cgroup_version(mounts: str) -> str:
    """`v1`, `v2`, `hybrid` (limits in version 1, names in 2) or `none`, from /proc/self/mounts."""
    kinds = {words[2] for line in mounts.splitlines() if len(words := line.split()) > 2}
    if "cgroup" in kinds:
        return "hybrid" if "cgroup2" in kinds else "v1"
    return "v2" if "cgroup2" in kinds else "none"


def _place(topology: Path) -> tuple[str, str] | None:
    package, core = (text_of(topology / name).strip() for name in ("physical_package_id", "core_id"))
    return (package, core) if core else None


def _last_level_cache_bytes(cpus: Path, ours: frozenset[int]) -> int:
    """All of ours together: a cache that several processors share is counted once."""
    caches: dict[tuple[int, str], int] = {}
    for cpu in ours:
        for index in (cpus / f"cpu{cpu}/cache").glob("index[0-9]*"):
            level = text_of(index / "level").strip()
            if level.isdigit() and text_of(index / "type").strip() != "Instruction":
                size = text_of(index / "size").strip()
                shared = text_of(index / "shared_cpu_list").strip()
                caches[(int(level), shared)] = _cache_bytes(size)
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def _cache_bytes(text: str) -> int:
    """`32768K`: the kernel says K and means KiB."""
    shift = {"K": 10, "M": 20}.get(text[-1:], 0)
    digits = text.rstrip("KM")
    return int(digits) << shift if digits.isascii() and digits.isdigit() else 0


def _inside(root: Path) -> tuple[str, ...]:
    """What we run inside of, as far as it shows itself."""
    found: list[str] = []
    if "microsoft" in text_of(root / "proc/version").lower():
        found.append("WSL")
    elif virtual := _virtual(root):
        found.append(virtual)
    for sign, name in ((".dockerenv", "a Docker container"), ("run/.containerenv", "a Podman container")):
        if (root / sign).exists():
            found.append(name)
    if (root / "var/run/secrets/kubernetes.io").exists():
        found.append("a Kubernetes pod")
    return tuple(found)


def _virtual(root: Path) -> str:
    if not re.search(r"^flags\s*:.*\bhypervisor\b", text_of(root / "proc/cpuinfo"), re.MULTILINE):
        return ""
    maker = text_of(root / "sys/class/dmi/id/sys_vendor").strip()
    called = next((name for sign, name in _MAKERS.items() if maker.startswith(sign)), "")
    return f"a virtual machine ({called})" if called else "a virtual machine"


def _size(folder: Path) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize


def _disk(state_root: Path, root: Path, *, virtual: bool) -> Disk:
    """Virtual disks call themselves rotating unless somebody thought of it: in a virtual machine that says nothing."""
    folder = state_root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    file_system = file_system_of(text_of(root / "proc/self/mountinfo"), number)
    block = root / "sys/dev/block" / number
    rotating = text_of(block / "queue/rotational").strip() or text_of(block / "../queue/rotational").strip()
    kind = {"0": "solid state", "1": "" if virtual else "rotating"}.get(rotating, "")
    if file_system in _NETWORK or file_system in _MEMORY:
        kind = "network" if file_system in _NETWORK else "memory"
    return Disk(folder=str(folder), free_bytes=disk_free_bytes(folder), file_system=file_system, kind=kind)


def file_system_of(mountinfo: str, number: str) -> str:
    """The type of the file system with device `number` (`8:1`), from /proc/self/mountinfo; empty where unknown."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if len(words := before.split()) > 2 and words[2] == number and after:
            return after.split()[0]
    return ""
