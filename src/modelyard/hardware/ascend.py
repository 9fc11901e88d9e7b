"""Huawei Ascend: the table of `npu-smi info`, which has no machine-readable form.

Tested on recorded outputs only: nothing here has run on the hardware."""

from __future__ import annotations

import re
from pathlib import Path

from modelyard.hardware.accelerator import Accelerator, Found, unreadable
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.tools import Run

# `| 0     910B3      | OK     | 86.8    35    0    / 0   |`: NPU, chip name, health.
_BOARD = re.compile(r"\|\s*(\d+)\s+(\w+)\s*\|\s*([A-Za-z]+)\s*\|")
# `| 0                | 0000:66:00.0  | 0   0    / 0    59356/ 65536  |`: chip, bus, the rest.
_CHIP = re.compile(r"\|\s*\d+(?:\s+\d+)?\s*\|\s*[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f.]+\s*\|(.*)\|")
# Below the second heading: NPU, chip, process id.
_PROCESS = re.compile(r"\|\s*(\d+)\s+\d+\s*\|\s*\d+\s*\|")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")
_VERSION = re.compile(r"Version:\s*(\S+)")
_CANN = "usr/local/Ascend/ascend-toolkit/latest/version.cfg"


def find(root: Path, run: Run) -> Found:
    """Nothing, and no child, where there is no device of theirs."""
    if not (root / "dev/davinci_manager").exists():
        return Found()
    said = run(("npu-smi", "info"))
    if said is None:
        return Found((), (unreadable("npu-smi", "an Ascend device is here and the tool is not"),))
    if said.failed is not None:
        return Found((), (unreadable("npu-smi info", said.failed),))
    found = from_npu_smi(said.text, cann_version(text_of(root / _CANN)))
    return Found(found, () if found else (unreadable("npu-smi info", "it shows no device"),))


def from_npu_smi(text: str, runtime: str = "") -> tuple[Accelerator, ...]:
    """A device for each chip. Its `MB` are MiB: 65536 of them are called 64 GB."""
    version = _VERSION.search(text)
    devices, _, processes = text.partition("Process id")
    running = [int(found.group(1)) for line in processes.splitlines() if (found := _PROCESS.match(line.strip()))]
    chips: list[Accelerator] = []
    board: re.Match[str] | None = None
    for line in devices.splitlines():
        if found := _BOARD.match(line.strip()):
            board = found
        elif board is not None and (chip := _CHIP.match(line.strip())):
            used_mib, total_mib = _memory(chip.group(1))
            chips.append(
                Accelerator(
                    vendor="ascend",
                    index=len(chips),
                    name=f"Ascend {board.group(2)}",
                    memory_bytes=total_mib << 20 if total_mib else None,
                    free_bytes=max(0, total_mib - used_mib) << 20 if total_mib else None,
                    architecture=board.group(2),
                    driver=version.group(1) if version else "",
                    runtime=runtime,
                    processes=running.count(int(board.group(1))),
                    healthy=board.group(3) == "OK",
                )
            )
    return tuple(chips)


def cann_version(text: str) -> str:
    """From CANN's version.cfg: `runtime_running_version=[7.5.0.1.129:8.0.RC3]`."""
    found = re.search(r"runtime_running_version=\[[^:\]]*:?([^\]]*)\]", text)
    return found.group(1) if found else ""


def _memory(rest: str) -> tuple[int, int]:
    """(used, total) in MiB: the last column that has a total; chips without HBM have but one."""
    pairs = [(int(used), int(total)) for used, total in _USAGE.findall(rest) if int(total) > 0]
    return pairs[-1] if pairs else (0, 0)
