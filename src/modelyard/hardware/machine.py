"""What exists: the cores, memory, instruction set and accelerators that are really ours."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import msgspec

from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.cgroup import allowance
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.survey import survey
from modelyard.records.base import Record
from modelyard.records.fingerprint import sha256_of

# Only what changes which kernels an engine picks, under one name for each architecture: kernel name -> ours.
_ISA_NAMES = {
    **{name: name for name in ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16")},
    **{name: name for name in ("avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16")},
    **{name: name for name in ("sve", "sve2", "i8mm", "bf16", "sme", "sme2")},
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
}


class Machine(Record, tag_field="schema", tag="machine/v1"):
    """One machine as this process may use it: `cores` after affinity and quota of the control group, `memory_bytes`
    the smaller of the installed memory and the control group's limit. `isa` is sorted."""

    cores: int
    memory_bytes: int
    available_bytes: int
    cpu_model: str
    isa: tuple[str, ...]
    os: str
    arch: str
    # Left out of the encoding where there are none: the fingerprint of such a machine is what it was before.
    accelerators: tuple[Accelerator, ...] = ()

    def fingerprint(self) -> str:
        """Hex SHA-256 of what evidence depends on: not the memory that happens to be free now, and the whole memory
        only to the GiB, because a kernel reserves a little more or less of it at each boot."""
        lasting = msgspec.structs.replace(
            self,
            available_bytes=0,
            memory_bytes=round(self.memory_bytes / 2**30) << 30,
            accelerators=tuple(one.identity() for one in self.accelerators),
        )
        return sha256_of(lasting)


def probe(root: Path = Path("/"), accelerators: tuple[Accelerator, ...] | None = None) -> Machine:
    """This machine. `root` is where proc and sys are found (tests lay recorded trees elsewhere); `accelerators` spares
    a second look at those that are known already."""
    allowed = allowance(root)
    cpu_text = text_of(root / "proc/cpuinfo")
    installed, available = memory(text_of(root / "proc/meminfo")) or _memory_without_proc()
    limit = min(installed, allowed.memory_bytes or installed)
    return Machine(
        cores=usable_cores(_affinity(), allowed.cores),
        memory_bytes=limit,
        available_bytes=min(available, limit, limit if allowed.free_bytes is None else allowed.free_bytes),
        cpu_model=cpu_model(cpu_text) or platform.processor() or platform.machine(),
        isa=isa(cpu_text),
        os=platform.system().lower(),
        arch=platform.machine().lower(),
        accelerators=survey(root).accelerators if accelerators is None else accelerators,
    )


def usable_cores(affinity: int, quota: float | None) -> int:
    """Threads worth starting: a quota of 1.5 cores feeds one thread without throttling, two only half of the time."""
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def memory(meminfo: str) -> tuple[int, int] | None:
    """(installed, available) in bytes from /proc/meminfo; None where it is not there."""
    values = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    if "MemTotal" not in values:
        return None
    total = _kib(values["MemTotal"])
    return total, _kib(values["MemAvailable"]) if "MemAvailable" in values else total


def cpu_model(cpuinfo: str) -> str:
    """The name in /proc/cpuinfo; ARM kernels give numbers instead, which then are the name."""
    values = dict(_pairs(cpuinfo.partition("\n\n")[0]))
    if name := values.get("model name"):
        return " ".join(name.split())
    numbers = [values[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in values]
    return " ".join(["arm", *numbers]) if numbers else ""


def isa(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets that every processor of /proc/cpuinfo has, in our names."""
    sets = [frozenset(text.split()) for key, text in _pairs(cpuinfo) if key in ("flags", "Features")]
    return tuple(sorted({ours for name, ours in _ISA_NAMES.items() if sets and all(name in one for one in sets)}))


def disk_free_bytes(folder: Path) -> int:
    """What this user may still write where `folder` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _pairs(text: str) -> list[tuple[str, str]]:
    split = (line.partition(":") for line in text.splitlines() if ":" in line)
    return [(key.strip(), value.strip()) for key, _, value in split]


def _kib(text: str) -> int:
    """`24683656 kB`: the kernel says kB and means KiB."""
    return int(text.split()[0]) * 1024


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_without_proc() -> tuple[int, int]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total
