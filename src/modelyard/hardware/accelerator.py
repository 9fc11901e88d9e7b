"""One accelerator as its driver describes it, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from modelyard.records.base import Record
from modelyard.records.finding import Finding

Vendor = Literal["nvidia", "amd", "ascend", "apple", "intel"]


class Accelerator(Record):
    """A GPU or NPU, or one partition of it. Absent stays absent: None or empty where the driver does not say.

    `architecture` names the kernels that it runs, in its vendor's words: a compute capability (`9.0`), a gfx target
    (`gfx942`), a chip (`910B3`). `runtime` is the newest version of the vendor's runtime that the driver serves.
    `memory_bytes` is None where it works in the machine's own memory (`unified`). `partition` names a slice (MIG)."""

    vendor: Vendor
    index: int
    name: str
    memory_bytes: int | None = None
    free_bytes: int | None = None
    unified: bool = False
    architecture: str = ""
    driver: str = ""
    runtime: str = ""
    partition: str = ""
    ecc: bool | None = None
    processes: int | None = None
    links: str = ""
    healthy: bool = True

    def identity(self) -> Accelerator:
        """What evidence depends on: not what is free or running now."""
        return msgspec.structs.replace(self, free_bytes=None, processes=None, healthy=True)


@dataclass(frozen=True, slots=True)
class Found:
    """What one look brought, and what went wrong in it."""

    accelerators: tuple[Accelerator, ...] = ()
    findings: tuple[Finding, ...] = ()


def unreadable(source: str, why: str) -> Finding:
    """A driver or a tool that is there and cannot be used."""
    return Finding(
        severity="warning",
        check="accelerators",
        what=f"{source}: {why}",
        why="what it would tell is unknown, so no engine is planned on that accelerator",
        remedy=f"run it by hand to see what it says; a driver that was updated needs a reboot: {source}",
    )


def version_of(text: str) -> tuple[int, ...]:
    """`12.8` as (12, 8), to compare; whatever follows the leading numbers is left out, empty where there are none."""
    numbers: list[int] = []
    for part in text.strip().lstrip("v").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
