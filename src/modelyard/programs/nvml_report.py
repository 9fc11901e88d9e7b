"""What NVIDIA's management library says, as one JSON object on standard output: `nvml_report.py`.

A process of its own, because a driver that is broken hangs or crashes whoever loads its library. Functions and structs:
NVIDIA's "NVML API Reference Guide". Exit status 3 where the library is not there, 4 where it cannot be used."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

NO_LIBRARY, UNUSABLE = 3, 4
_NAMES = ("libnvidia-ml.so.1", "libnvidia-ml.so", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
_TEXT_BYTES = 96
_MOST_LINKS = 18
_MOST_PROCESSES_TOLD = 7  # NVML_ERROR_INSUFFICIENT_SIZE: the count is told although the list has no room


class Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def report(library: Any) -> dict[str, Any]:
    """Everything about every device. Raises RuntimeError where the library cannot be initialised."""
    if status := library.nvmlInit_v2():
        raise RuntimeError(f"nvmlInit_v2 returned {status}")
    try:
        cuda = _number(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.c_int)
        return {
            "driver": _text(library, "nvmlSystemGetDriverVersion"),
            "cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            "devices": [_device(library, index) for index in range(_count(library))],
        }
    finally:
        library.nvmlShutdown()


def _count(library: Any) -> int:
    return _number(library, "nvmlDeviceGetCount_v2", ctypes.c_uint) or 0


def _device(library: Any, index: int) -> dict[str, Any]:
    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return {"index": index, "lost": True}
    told = _common(library, handle)
    mig = _pair(library, "nvmlDeviceGetMigMode", handle, ctypes.c_uint)
    ecc = _pair(library, "nvmlDeviceGetEccMode", handle, ctypes.c_int)
    told |= {
        "index": index,
        "compute": _pair(library, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.c_int),
        "mig": None if mig is None else bool(mig[0]),
        "ecc": None if ecc is None else bool(ecc[0]),
        "processes": _processes(library, handle),
        "pcie_generation": _number(library, "nvmlDeviceGetMaxPcieLinkGeneration", ctypes.c_uint, handle),
        "pcie_width": _number(library, "nvmlDeviceGetMaxPcieLinkWidth", ctypes.c_uint, handle),
        "nvlinks": _nvlinks(library, handle),
    }
    told["slices"] = _slices(library, handle) if told["mig"] else []
    return told


def _common(library: Any, handle: ctypes.c_void_p) -> dict[str, Any]:
    memory = Memory()
    known = _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    return {
        "name": _text(library, "nvmlDeviceGetName", handle),
        "total": memory.total if known else None,
        "free": memory.free if known else None,
    }


def _slices(library: Any, handle: ctypes.c_void_p) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(_number(library, "nvmlDeviceGetMaxMigDeviceCount", ctypes.c_uint, handle) or 0):
        one = ctypes.c_void_p()
        if _call(library, "nvmlDeviceGetMigDeviceHandleByIndex", handle, ctypes.c_uint(index), ctypes.byref(one)):
            found.append(_common(library, one))
    return found


def _processes(library: Any, handle: ctypes.c_void_p) -> int | None:
    count = ctypes.c_uint(0)
    function = getattr(library, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    if function is None or function(handle, ctypes.byref(count), None) not in (0, _MOST_PROCESSES_TOLD):
        return None
    return count.value


def _nvlinks(library: Any, handle: ctypes.c_void_p) -> int:
    active = 0
    for link in range(_MOST_LINKS):
        state = ctypes.c_uint(0)
        if not _call(library, "nvmlDeviceGetNvLinkState", handle, ctypes.c_uint(link), ctypes.byref(state)):
            break
        active += state.value
    return active


def _call(library: Any, name: str, *arguments: Any) -> bool:
    """Whether the library has the function and it succeeded; old drivers lack some, many boards refuse some."""
    function = getattr(library, name, None)
    return function is not None and function(*arguments) == 0


def _text(library: Any, name: str, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    known = _call(library, name, *arguments, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode(errors="replace") if known else ""


def _number(library: Any, name: str, kind: Any, *arguments: Any) -> int | None:
    value = kind()
    return value.value if _call(library, name, *arguments, ctypes.byref(value)) else None


def _pair(library: Any, name: str, handle: ctypes.c_void_p, kind: Any) -> list[int] | None:
    first, second = kind(), kind()
    known = _call(library, name, handle, ctypes.byref(first), ctypes.byref(second))
    return [first.value, second.value] if known else None


def main() -> int:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        try:
            print(json.dumps(report(library)))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return UNUSABLE
        return 0
    return NO_LIBRARY


if __name__ == "__main__":
    sys.exit(main())
