"""What a machine's facts mean for serving: pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelyard.hardware.details import Details
from modelyard.hardware.machine import Machine
from modelyard.records.finding import Finding

# An engine with the packaged model takes about this much; below it nothing starts.
_LEAST_MEMORY_BYTES, _EASY_MEMORY_BYTES = 600 << 20, 2 << 30
# An engine's environment and the packaged model, with what unpacking them takes for a moment.
_LEAST_DISK_BYTES, _EASY_DISK_BYTES = 700 << 20, 5 << 30
# Each request has a connection to its client and one to its engine, and each process some of its own.
_EASY_OPEN_FILES = 4096
# Engines of several ranks pass tensors through it; container runtimes give 64 MiB unless told otherwise.
_EASY_SHARED_MEMORY_BYTES = 1 << 30
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Process:
    """What this process may, and where it finds itself. `written_at` is when our own files were written, `now` what the
    clock says, both Unix seconds; `libc` is empty where it does not name itself."""

    open_files: int
    libc: str
    now: float
    written_at: float


def judge(machine: Machine, details: Details, process: Process) -> tuple[Finding, ...]:
    return (
        *_memory(machine),
        *_disk(details),
        *_cores(machine, details),
        *_layout(details),
        *_process(machine, process),
        *_shared_memory(details),
    )


def _memory(machine: Machine) -> Iterator[Finding]:
    free = machine.available_bytes
    if free < _LEAST_MEMORY_BYTES:
        yield Finding(
            severity="error",
            check="memory",
            what=f"{_mib(free)} of memory are free",
            why=f"the smallest model in the smallest engine takes {_mib(_LEAST_MEMORY_BYTES)}",
            remedy="end what takes the memory, or raise the container's limit (docker run --memory)",
        )
    elif free < _EASY_MEMORY_BYTES:
        yield Finding(
            severity="warning",
            check="memory",
            what=f"{_mib(free)} of memory are free",
            why="enough for the packaged model and little more: contexts are planned short",
            remedy="end what takes the memory, or raise the container's limit (docker run --memory)",
        )


def _disk(details: Details) -> Iterator[Finding]:
    disk = details.disk
    if disk.free_bytes < _EASY_DISK_BYTES:
        short = disk.free_bytes < _LEAST_DISK_BYTES
        yield Finding(
            severity="error" if short else "warning",
            check="disk",
            what=f"{_mib(disk.free_bytes)} are free where state is kept ({disk.folder})",
            why=f"the first engine and the packaged model take {_mib(_LEAST_DISK_BYTES)}; models of use take gigabytes",
            remedy="free some space, or name a folder on a larger disk in MODELYARD_STATE",
        )
    if disk.kind in ("network", "rotating"):
        yield Finding(
            severity="warning",
            check="disk",
            what=f"state is kept on a {disk.kind} disk ({disk.file_system or disk.folder})",
            why="models load slowly from it"
            + ("; locks and sockets do not work on every network file system" if disk.kind == "network" else ""),
            remedy="name a folder on a local, solid state disk in MODELYARD_STATE",
        )
    if disk.kind == "memory":
        yield Finding(
            severity="warning",
            check="disk",
            what=f"state is kept in memory ({disk.file_system})",
            why="models, environments, keys and evidence are gone after a reboot, and take memory from engines",
            remedy="name a folder on a disk in MODELYARD_STATE",
        )


def _cores(machine: Machine, details: Details) -> Iterator[Finding]:
    quota = details.quota_cores
    if quota is not None and quota < details.allowed:
        yield Finding(
            severity="warning" if quota < 1 or quota != int(quota) else "note",
            check="cores",
            what=f"a control group leaves {quota:g} of {details.allowed} cores' worth of time",
            why=f"engines run {machine.cores} thread{'s' if machine.cores > 1 else ''}; more would be throttled, "
            "and a part of a core lies idle",
            remedy="raise the quota to a whole number (docker run --cpus, CPUQuota= of a systemd unit)",
        )
    if machine.arch == "x86_64" and "avx2" not in machine.isa:
        yield Finding(
            severity="warning",
            check="isa",
            what="the processor has no AVX2, or the hypervisor hides it",
            why="engines fall back to kernels that are several times slower, and some do not start",
            remedy="give the virtual machine the host's processor model (qemu: -cpu host)",
        )
    if 0 < details.physical_cores < details.allowed:
        yield Finding(
            severity="note",
            check="cores",
            what=f"{details.allowed} threads share {details.physical_cores} physical cores",
            why="two threads of one core share its arithmetic: more threads than cores rarely make an engine faster",
        )


def _layout(details: Details) -> Iterator[Finding]:
    if details.numa_nodes > 1:
        yield Finding(
            severity="note",
            check="numa",
            what=f"our cores are spread over {details.numa_nodes} NUMA nodes",
            why="memory of another node is read more slowly than one's own",
            remedy="start one replica for each node, or bind the yard to one (numactl --cpunodebind=0 --membind=0)",
        )


def _process(machine: Machine, process: Process) -> Iterator[Finding]:
    if 0 <= process.open_files < _EASY_OPEN_FILES:
        yield Finding(
            severity="warning",
            check="open files",
            what=f"a process may open {process.open_files} files at most",
            why="every request takes two, one to the client and one to the engine: the gateway refuses the others",
            remedy="ulimit -Hn 65536, or LimitNOFILE=65536 in a systemd unit",
        )
    if machine.os == "linux" and process.libc and process.libc != "glibc":
        yield Finding(
            severity="warning",
            check="libc",
            what=f"the C library is {process.libc}, not glibc",
            why="engines are published as wheels for glibc: most of them cannot be installed here",
            remedy="use a distribution with glibc, for example a Debian image in place of an Alpine one",
        )
    if process.now < process.written_at - _DAY_S:
        days = (process.written_at - process.now) / _DAY_S
        yield Finding(
            severity="error",
            check="clock",
            what=f"the clock is at least {days:.0f} days slow: it stands before the day our own files were written",
            why="certificates look as if they were not valid yet, and evidence and keys expire at wrong times",
            remedy="set the clock (timedatectl set-ntp true)",
        )


def _shared_memory(details: Details) -> Iterator[Finding]:
    if 0 < details.shared_memory_bytes < _EASY_SHARED_MEMORY_BYTES:
        yield Finding(
            severity="note",
            check="shared memory",
            what=f"the shared memory (/dev/shm) holds {_mib(details.shared_memory_bytes)}",
            why="engines that run as several processes pass tensors through it and fail when it is full",
            remedy="docker run --shm-size=8g, or --ipc=host",
        )


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
