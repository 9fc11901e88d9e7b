"""AMD: the kernel's own tables (KFD and DRM in /sys), with `amd-smi` or `rocm-smi` where those are not enough.

Tested on recorded outputs only: nothing here has run on the hardware."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import msgspec

from modelyard.hardware.accelerator import Accelerator, Found, unreadable
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.tools import Run
from modelyard.records.finding import Finding

_NODES = "sys/class/kfd/kfd/topology/nodes"
_VENDOR = "4098"  # 0x1002
# HSA_HEAPTYPE of a memory bank: the GPU's own memory, reachable by the CPU or not.
_OWN_HEAPS = ("1", "2")
_SMI = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")
_UNITS = {"B": 0, "KB": 10, "MB": 20, "GB": 30}


def find(root: Path, run: Run) -> Found:
    """What the kernel says; the tools are asked for names, and for everything where the kernel's tables are hidden."""
    from_kernel = from_kfd(root)
    if from_kernel and all(one.name for one in from_kernel):
        return Found(from_kernel, _reach(root))
    told, findings = _tools(run)
    if not from_kernel:
        return Found(told, findings)
    if len(told) == len(from_kernel):
        named = tuple(
            msgspec.structs.replace(one, name=one.name or other.name)
            for one, other in zip(from_kernel, told, strict=True)
        )
        return Found(named, _reach(root))
    unnamed = tuple(msgspec.structs.replace(one, name=one.name or f"AMD {one.architecture}") for one in from_kernel)
    return Found(unnamed, (*findings, *_reach(root)))


def from_kfd(root: Path) -> tuple[Accelerator, ...]:
    """From /sys/class/kfd (ROCm's documentation, "KFD Topology") and the DRM device of each node."""
    found: list[Accelerator] = []
    folders = [one for one in _inside(root / _NODES) if one.name.isdigit()]
    driver = text_of(root / "sys/module/amdgpu/version").strip()
    runtime = text_of(root / "opt/rocm/.info/version").strip()
    for folder in sorted(folders, key=lambda one: int(one.name)):
        node = properties(text_of(folder / "properties"))
        target = gfx_target(node.get("gfx_target_version", ""))
        if node.get("vendor_id") != _VENDOR or not target:
            continue
        device = root / f"sys/class/drm/renderD{node.get('drm_render_minor', '')}/device"
        total = _whole(text_of(device / "mem_info_vram_total")) or _banks(folder)
        used = _whole(text_of(device / "mem_info_vram_used"))
        found.append(
            Accelerator(
                vendor="amd",
                index=len(found),
                name=" ".join(text_of(device / "product_name").split()),
                memory_bytes=total,
                free_bytes=None if total is None or used is None else max(0, total - used),
                architecture=target,
                driver=driver,
                runtime=runtime,
            )
        )
    return tuple(found)


def gfx_target(version: str) -> str:
    """`gfx942` from 90402: two decimal digits each of major, minor and stepping, the last two written in hex."""
    if not version.isascii() or not version.isdigit() or int(version) == 0:
        return ""
    number = int(version)
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def properties(text: str) -> dict[str, str]:
    """`name value` lines."""
    split = (line.split() for line in text.splitlines())
    return {words[0]: words[1] for words in split if len(words) == 2}


def from_amd_smi(text: str) -> tuple[Accelerator, ...]:
    """From `amd-smi static --asic --vram --driver --json`: a list, since ROCm 7 in `gpu_data`. Raises ValueError."""
    told = _json(text)
    devices: Any = _object(told).get("gpu_data", told)
    if not isinstance(devices, list):
        raise ValueError("there is no list of GPUs")
    found: list[Accelerator] = []
    for device in cast("list[Any]", devices):
        asic, vram, driver = (_part(device, name) for name in ("asic", "vram", "driver"))
        size = _part(vram, "size")
        scale = _UNITS.get(str(size.get("unit")))
        value = _whole(str(size.get("value")))
        found.append(
            Accelerator(
                vendor="amd",
                index=len(found),
                name=_known(asic.get("market_name")),
                memory_bytes=None if scale is None or value is None else value << scale,
                architecture=_known(asic.get("target_graphics_version")),
                driver=_known(driver.get("version") or driver.get("driver_version")),
            )
        )
    return tuple(found)


def from_rocm_smi(text: str) -> tuple[Accelerator, ...]:
    """From `rocm-smi --showproductname --showmeminfo vram --showdriverversion --json`; the case of its keys changed
    between versions. Raises ValueError."""
    told = _object(_json(text))
    if not told:
        raise ValueError("it is no object, or an empty one")
    cards = [name for name in told if name.startswith("card") and name[4:].isdigit()]
    driver = _lower(told.get("system")).get("driver version", "")
    found: list[Accelerator] = []
    for name in sorted(cards, key=lambda one: int(one[4:])):
        card = _lower(told[name])
        total, used = (_whole(card.get(key, "")) for key in ("vram total memory (b)", "vram total used memory (b)"))
        found.append(
            Accelerator(
                vendor="amd",
                index=len(found),
                name=_known(card.get("card series") or card.get("card model")),
                memory_bytes=total,
                free_bytes=None if total is None or used is None else max(0, total - used),
                architecture=card.get("gfx version", ""),
                driver=driver,
            )
        )
    return tuple(found)


def _tools(run: Run) -> tuple[tuple[Accelerator, ...], tuple[Finding, ...]]:
    findings: list[Finding] = []
    for argv, read in (
        (("amd-smi", "static", "--asic", "--vram", "--driver", "--json"), from_amd_smi),
        (_SMI, from_rocm_smi),
    ):
        said = run(argv)
        if said is None:
            continue
        try:
            if said.failed is None:
                return read(said.text), ()
            findings.append(unreadable(argv[0], said.failed))
            if said.hung:
                break
        except ValueError as error:
            findings.append(unreadable(argv[0], f"its answer cannot be read: {error}"))
    return (), tuple(findings)


def _reach(root: Path) -> tuple[Finding, ...]:
    """Whether this user may use the device that all of ROCm goes through."""
    device = root / "dev/kfd"
    if os.access(device, os.R_OK | os.W_OK):
        return ()
    there = device.exists()
    return (
        Finding(
            severity="warning",
            check="accelerators",
            what="/dev/kfd may not be opened by this user" if there else "there is no /dev/kfd here",
            why="ROCm reaches an AMD GPU through it",
            remedy="sudo usermod -aG render,video $USER, then log in again"
            if there
            else "in a container: start it with --device /dev/kfd --device /dev/dri",
        ),
    )


def _banks(folder: Path) -> int | None:
    banks = [properties(text_of(bank / "properties")) for bank in _inside(folder / "mem_banks")]
    sizes = [_whole(bank.get("size_in_bytes", "")) or 0 for bank in banks if bank.get("heap_type") in _OWN_HEAPS]
    return sum(sizes) or None


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ValueError(str(error)) from error


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _part(value: Any, name: str) -> dict[str, Any]:
    return _object(_object(value).get(name))


def _lower(value: Any) -> dict[str, str]:
    return {key.lower(): str(one) for key, one in _object(value).items()}


def _known(value: Any) -> str:
    text = str(value or "").strip()
    return "" if text.upper() in ("N/A", "NONE") else text


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
