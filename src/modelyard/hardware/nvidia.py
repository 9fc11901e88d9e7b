"""NVIDIA: its management library, asked by a process of its own; `nvidia-smi` where that does not answer.

Tested on recorded outputs only: nothing here has run on the hardware."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from modelyard.hardware.accelerator import Accelerator, Found, unreadable
from modelyard.hardware.kernel_files import text_of
from modelyard.hardware.tools import Run
from modelyard.records.finding import Finding

PROGRAM = Path(__file__).parents[1] / "programs" / "nvml_report.py"
# A loaded driver, its device, or the paravirtualised one of WSL.
_SIGNS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")


class _Slice(msgspec.Struct):
    name: str = ""
    total: int | None = None
    free: int | None = None


class _Device(msgspec.Struct):
    index: int
    lost: bool = False
    name: str = ""
    total: int | None = None
    free: int | None = None
    compute: tuple[int, int] | None = None
    mig: bool | None = None
    ecc: bool | None = None
    processes: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlinks: int = 0
    slices: list[_Slice] = []


class _Report(msgspec.Struct):
    driver: str = ""
    cuda: str | None = None
    devices: list[_Device] = []


def find(root: Path, run: Run) -> Found:
    """What the driver says; nothing at all, and no child, where there is no driver."""
    if not any((root / sign).exists() for sign in _SIGNS):
        return Found()
    told = run((sys.executable, "-I", "-S", str(PROGRAM)))
    if told is not None and told.hung:
        return Found((), (unreadable("nvidia-smi", "NVIDIA's management library does not answer"),))
    if told is not None and told.failed is None:
        try:
            return from_nvml(told.text)
        except ValueError:
            pass
    smi = run(("nvidia-smi", "-q", "-x"))
    if smi is None:
        return Found((), (_no_library(),)) if _has_devices(root) else Found()
    if smi.failed is not None:
        return Found((), (unreadable("nvidia-smi", smi.failed),))
    capabilities = run(("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"))
    try:
        return from_smi(smi.text, capabilities.text if capabilities is not None and capabilities.failed is None else "")
    except ValueError as error:
        return Found((), (unreadable("nvidia-smi -q -x", f"its answer cannot be read: {error}"),))


def from_nvml(text: str) -> Found:
    """From the JSON of `programs/nvml_report.py`. Raises ValueError."""
    try:
        report = msgspec.json.decode(text, type=_Report)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    found: list[Accelerator] = []
    findings: list[Finding] = []
    for device in report.devices:
        if device.lost:
            findings.append(_lost(device.index))
            continue
        whole = Accelerator(
            vendor="nvidia",
            index=device.index,
            name=device.name,
            memory_bytes=device.total,
            free_bytes=device.free,
            architecture="" if device.compute is None else f"{device.compute[0]}.{device.compute[1]}",
            driver=report.driver,
            runtime=report.cuda or "",
            ecc=device.ecc,
            processes=device.processes,
            links=_links(device),
        )
        slices = [(one.name, one.total, one.free) for one in device.slices]
        found += _sliced(whole, slices) if device.mig else [whole]
        findings += [_no_slices(whole)] if device.mig and not slices else []
    return Found(tuple(found), tuple(findings))


def from_smi(xml: str, capabilities: str = "") -> Found:
    """From `nvidia-smi -q -x`, and the lines of its `compute_cap` query in the same order. Raises ValueError."""
    try:
        # The vendor's own tool wrote it; expat has refused entity bombs since 2.4.
        log = ElementTree.fromstring(xml)  # noqa: S314
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    if log.tag != "nvidia_smi_log":
        raise ValueError(f"it begins with <{log.tag}>")
    known = [line.strip() for line in capabilities.splitlines() if line.strip()]
    found: list[Accelerator] = []
    findings: list[Finding] = []
    gpus = log.findall("gpu")
    for index, gpu in enumerate(gpus):
        whole = Accelerator(
            vendor="nvidia",
            index=index,
            name=_said(gpu, "product_name"),
            memory_bytes=_bytes(gpu, "fb_memory_usage/total"),
            free_bytes=_bytes(gpu, "fb_memory_usage/free"),
            architecture=known[index] if len(known) == len(gpus) else "",
            driver=_said(log, "driver_version"),
            runtime=_said(log, "cuda_version"),
            ecc={"Enabled": True, "Disabled": False}.get(_said(gpu, "ecc_mode/current_ecc")),
            processes=len(gpu.findall("processes/process_info")),
        )
        if _said(gpu, "mig_mode/current_mig") != "Enabled":
            found.append(whole)
            continue
        slices = [
            (f"{whole.name} MIG", _bytes(one, "fb_memory_usage/total"), _bytes(one, "fb_memory_usage/free"))
            for one in gpu.findall("mig_devices/mig_device")
        ]
        found += _sliced(whole, slices)
        findings += [] if slices else [_no_slices(whole)]
    return Found(tuple(found), tuple(findings))


def _sliced(whole: Accelerator, slices: list[tuple[str, int | None, int | None]]) -> list[Accelerator]:
    return [
        msgspec.structs.replace(
            whole, partition=f"{number}: {name}", memory_bytes=total, free_bytes=free, processes=None
        )
        for number, (name, total, free) in enumerate(slices)
    ]


def _links(device: _Device) -> str:
    links = [f"NVLink x{device.nvlinks}"] if device.nvlinks else []
    if device.pcie_generation and device.pcie_width:
        links.append(f"PCIe {device.pcie_generation} x{device.pcie_width}")
    return ", ".join(links)


def _said(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    return "" if text in ("N/A", "[N/A]", "Not Found") else text


def _bytes(element: ElementTree.Element, path: str) -> int | None:
    number, _, unit = _said(element, path).partition(" ")
    return int(number) << 20 if unit == "MiB" and number.isascii() and number.isdigit() else None


def _has_devices(root: Path) -> bool:
    return bool(text_of(root / "proc/driver/nvidia/version")) or (root / "dev/nvidiactl").exists()


def _lost(index: int) -> Finding:
    return Finding(
        severity="warning",
        check="accelerators",
        what=f"NVIDIA GPU {index} does not answer its driver",
        why="it has fallen off the bus or is being reset; nothing can run there",
        remedy="look for Xid in the kernel's log (dmesg); a reboot brings it back, or the board is broken",
    )


def _no_slices(whole: Accelerator) -> Finding:
    return Finding(
        severity="warning",
        check="accelerators",
        what=f"MIG is on for {whole.name} (GPU {whole.index}) and has no instances",
        why="a GPU in MIG mode runs nothing but instances",
        remedy=f"make one: nvidia-smi mig -i {whole.index} -cgi 0 -C; or end it: nvidia-smi -i {whole.index} -mig 0",
    )


def _no_library() -> Finding:
    return Finding(
        severity="warning",
        check="accelerators",
        what="an NVIDIA driver is loaded and its libraries are not here (libnvidia-ml.so.1, nvidia-smi)",
        why="engines cannot reach the GPU without them",
        remedy="in a container: start it with the NVIDIA container toolkit (--gpus all); else reinstall the driver",
    )
