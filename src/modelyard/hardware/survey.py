"""Every accelerator of this machine, and what stands between us and those that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelyard.hardware import amd, apple, ascend, intel, nvidia
from modelyard.hardware.accelerator import Accelerator, Found
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.tools import Run, run_tool
from modelyard.records.finding import Finding

_SOURCES: dict[str, Callable[[Path, Run], Found]] = {
    "nvidia": nvidia.find,
    "amd": amd.find,
    "ascend": ascend.find,
    "apple": apple.find,
    "intel": intel.find,
}
# PCI vendor -> whose it is, and what to do where its driver is missing. Intel's and AMD's small ones are in most
# machines and of no use to engines without a driver of their own: they are not missed.
_ON_THE_BUS = {
    "0x10de": ("nvidia", "NVIDIA", "install NVIDIA's driver: the package nvidia-driver of your distribution"),
    "0x19e5": ("ascend", "Huawei Ascend", "install the NPU's driver and firmware packages, then reboot"),
}
# PCI classes: display controllers, processing accelerators.
_CLASSES = ("0x03", "0x12")


def survey(root: Path = Path("/"), run: Run = run_tool) -> Found:
    """Asks all vendors at the same time. `root` is where proc, sys and dev are found (tests lay recorded trees
    elsewhere), `run` runs their tools."""
    with ThreadPoolExecutor(len(_SOURCES)) as pool:
        asked = {vendor: pool.submit(find, root, run) for vendor, find in _SOURCES.items()}
    found = {vendor: one.result() for vendor, one in asked.items()}
    accelerators = tuple(one for part in found.values() for one in part.accelerators)
    findings = tuple(one for part in found.values() for one in part.findings)
    return Found(accelerators, (*findings, *_sick(accelerators), *_without_driver(root, found)))


def on_the_bus(root: Path) -> Mapping[str, int]:
    """How many accelerators the PCI bus has, by vendor id; drivers do not matter."""
    counts: dict[str, int] = {}
    for device in (root / "sys/bus/pci/devices").glob("*"):
        if text_of(device / "class").startswith(_CLASSES):
            vendor = text_of(device / "vendor").strip()
            counts[vendor] = counts.get(vendor, 0) + 1
    return counts


def _without_driver(root: Path, found: Mapping[str, Found]) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            severity="warning",
            check="accelerators",
            what=f"the PCI bus has {count} {called} device{'s' if count > 1 else ''} and no driver answers",
            why="engines run on the CPU although an accelerator is there",
            remedy=remedy,
        )
        for vendor_id, (vendor, called, remedy) in _ON_THE_BUS.items()
        if (count := on_the_bus(root).get(vendor_id, 0)) and found[vendor] == Found()
    )


def _sick(accelerators: tuple[Accelerator, ...]) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            severity="warning",
            check="accelerators",
            what=f"{one.name} ({one.vendor} {one.index}) says that it is not healthy",
            why="requests that reach it may fail or stall",
            remedy="look at its vendor's tool and at the kernel's log (dmesg) before anything is served from it",
        )
        for one in accelerators
        if not one.healthy
    )
