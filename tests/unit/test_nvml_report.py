"""The program that asks NVIDIA's library, in front of a library of ours with the same functions."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from modelyard.hardware import nvidia
from modelyard.hardware.nvidia import PROGRAM
from programs import load_program

program = load_program("nvml_report")
UNSUPPORTED, TOO_SMALL = 3, 7


class Library:
    """Answers as NVML does: an error code, results through pointers. One GPU, in MIG mode where it has slices."""

    def __init__(self, slices: int = 0, status: int = 0) -> None:
        self.slices, self.status, self.shut = slices, status, False

    def nvmlInit_v2(self) -> int:
        return self.status

    def nvmlShutdown(self) -> int:
        self.shut = True
        return 0

    def nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> int:
        buffer.value = b"570.124.06"
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = 1000 + index.value
        return 0 if index.value == 0 else 15

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = b"NVIDIA H100 80GB HBM3" if handle.value == 1000 else b"NVIDIA H100 80GB HBM3 MIG 1g.10gb"
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.free, memory._obj.used = 80 << 30, 79 << 30, 1 << 30
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 9, 0
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> int:
        current._obj.value = pending._obj.value = int(self.slices > 0)
        return 0

    def nvmlDeviceGetEccMode(self, handle: Any, current: Any, pending: Any) -> int:
        return UNSUPPORTED

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, infos: None) -> int:
        count._obj.value = 3
        return TOO_SMALL

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, found: Any) -> int:
        found._obj.value = 2000 + index.value
        return 0 if index.value < self.slices else 6

    def nvmlDeviceGetNvLinkState(self, handle: Any, link: Any, state: Any) -> int:
        state._obj.value = 1
        return 0 if link.value < 4 else UNSUPPORTED


def test_a_gpu_is_described_and_what_the_board_refuses_stays_absent() -> None:
    library = Library()
    found = nvidia.from_nvml(json.dumps(program.report(library)))
    (gpu,) = found.accelerators
    assert (gpu.name, gpu.memory_bytes, gpu.free_bytes) == ("NVIDIA H100 80GB HBM3", 80 << 30, 79 << 30)
    assert (gpu.architecture, gpu.runtime, gpu.ecc, gpu.processes) == ("9.0", "12.8", None, 3)
    # This library has no PCIe functions at all, as old ones lack newer functions.
    assert gpu.links == "NVLink x4"
    assert found.findings[0].what == "NVIDIA GPU 1 does not answer its driver"
    assert library.shut


def test_in_mig_mode_the_instances_count() -> None:
    found = nvidia.from_nvml(json.dumps(program.report(Library(slices=2))))
    assert [one.partition for one in found.accelerators] == [
        "0: NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "1: NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ]


def test_a_library_that_cannot_be_initialised_is_said() -> None:
    with pytest.raises(RuntimeError, match="returned 9"):
        program.report(Library(status=9))


def test_the_program_runs_alone_and_says_that_there_is_no_library() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(PROGRAM)], capture_output=True, text=True)
    if done.returncode == 0:
        nvidia.from_nvml(done.stdout)
    else:
        assert done.returncode in (program.NO_LIBRARY, program.UNUSABLE)
