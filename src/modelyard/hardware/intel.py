"""Intel's GPUs and NPUs, from /sys alone. Tested on recorded trees only: nothing here has run on the hardware."""

from __future__ import annotations

import re
from pathlib import Path

from modelyard.hardware.accelerator import Accelerator, Found
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.tools import Run

_VENDOR = "0x8086"
_GPU_DRIVERS, _NPU_DRIVERS = ("i915", "xe"), ("intel_vpu",)
# A discrete GPU's own memory: i915's name for it, then xe's.
_OWN_MEMORY = ("lmem_total_bytes", "device/tile0/physical_vram_size_bytes")


def find(root: Path, run: Run) -> Found:
    gpus = _of_class(root / "sys/class/drm", r"card\d+", _GPU_DRIVERS, "GPU", 0)
    return Found((*gpus, *_of_class(root / "sys/class/accel", r"accel\d+", _NPU_DRIVERS, "NPU", len(gpus))))


def _of_class(folder: Path, pattern: str, drivers: tuple[str, ...], kind: str, first: int) -> tuple[Accelerator, ...]:
    found: list[Accelerator] = []
    for node in sorted(folder.glob("*")):
        device = node / "device"
        driver = re.search(r"^DRIVER=(\S+)$", text_of(device / "uevent"), re.MULTILINE)
        ours = text_of(device / "vendor").strip() == _VENDOR and driver is not None and driver.group(1) in drivers
        if not re.fullmatch(pattern, node.name) or not ours or driver is None:
            continue
        own = next((int(text) for name in _OWN_MEMORY if (text := text_of(node / name).strip()).isdigit()), None)
        found.append(
            Accelerator(
                vendor="intel",
                index=first + len(found),
                name=f"Intel {kind} {text_of(device / 'device').strip()}",
                memory_bytes=own,
                unified=own is None,
                driver=driver.group(1),
            )
        )
    return tuple(found)
