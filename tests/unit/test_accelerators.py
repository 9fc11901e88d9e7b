"""Accelerators as their drivers describe them. Recorded outputs: none of this has run on the hardware itself."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from accelerator_outputs import (
    AMD_SMI,
    AMD_SMI_7,
    KFD_BANK,
    KFD_CPU,
    KFD_GPU,
    NPU_SMI,
    NPU_SMI_310P,
    NVIDIA_SMI,
    NVML,
    ROCM_SMI,
    SYSTEM_PROFILER,
)
from hypothesis import given
from hypothesis import strategies as st

from modelyard.hardware import amd, apple, ascend, intel, nvidia
from modelyard.hardware.accelerator import Accelerator, Found, version_of
from modelyard.hardware.machine import Machine, probe
from modelyard.hardware.survey import survey
from modelyard.hardware.tools import Run, Said

GIB = 1 << 30


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def tools(**outputs: str | Said) -> Run:
    """A machine with these tools (`nvidia_smi="..."`) and no others; the NVML program is called `nvml`."""

    def run(argv: Sequence[str]) -> Said | None:
        name = "nvml" if argv[-1].endswith("nvml_report.py") else argv[0].replace("-", "_")
        if argv[0] == "nvidia-smi" and argv[1].startswith("--query"):
            name = "nvidia_smi_query"
        said = outputs.get(name)
        return Said(said) if isinstance(said, str) else said

    return run


def amd_tree(root: Path, gpus: int = 1, name: str = "AMD Instinct MI300X OAM") -> Path:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    lay(root, {f"{nodes}/0/properties": KFD_CPU, "sys/module/amdgpu/version": "6.10.5\n", "dev/kfd": ""})
    for number in range(gpus):
        minor = 128 + number
        device = f"sys/class/drm/renderD{minor}/device"
        files = {
            f"{nodes}/{number + 1}/properties": KFD_GPU.format(minor=minor),
            f"{nodes}/{number + 1}/mem_banks/0/properties": KFD_BANK,
            f"{device}/mem_info_vram_used": "301989888\n",
            f"{device}/product_name": f"{name}\n",
        }
        lay(root, files)
    return root


def test_nvml_tells_of_whole_gpus_slices_and_those_that_are_lost() -> None:
    found = nvidia.from_nvml(NVML)
    whole, first, second = found.accelerators
    assert (whole.name, whole.architecture, whole.driver, whole.runtime) == (
        "NVIDIA H100 80GB HBM3",
        "9.0",
        "570.124.06",
        "12.8",
    )
    assert (whole.memory_bytes, whole.ecc, whole.processes) == (85520809984, True, 2)
    assert whole.links == "NVLink x18, PCIe 5 x16"
    assert [one.partition for one in (first, second)] == [
        "0: NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "1: NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ]
    assert {first.index, second.index} == {1} and second.memory_bytes == 10468982784
    assert [one.what for one in found.findings] == [
        "NVIDIA GPU 2 does not answer its driver",
        "MIG is on for NVIDIA H100 80GB HBM3 (GPU 3) and has no instances",
    ]


def test_nvidia_smi_tells_the_same_and_what_is_not_applicable_stays_absent() -> None:
    found = nvidia.from_smi(NVIDIA_SMI, "8.9\n8.0\n").accelerators
    card, part = found
    assert (card.name, card.memory_bytes, card.free_bytes) == (
        "NVIDIA GeForce RTX 4090",
        24564 << 20,
        23017 << 20,
    )
    assert (card.ecc, card.processes, card.architecture, card.runtime) == (None, 1, "8.9", "12.2")
    assert (part.partition, part.memory_bytes, part.architecture) == (
        "0: NVIDIA A100-SXM4-40GB MIG",
        20096 << 20,
        "8.0",
    )


def test_capabilities_that_do_not_match_the_gpus_are_not_guessed() -> None:
    assert [one.architecture for one in nvidia.from_smi(NVIDIA_SMI, "8.9\n").accelerators] == ["", ""]


@pytest.mark.parametrize("text", ["", "No devices were found\n", "<html></html>", "<nvidia_smi_log>"])
def test_what_is_no_log_of_nvidia_smi_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        nvidia.from_smi(text)


def test_without_a_driver_nothing_of_nvidia_is_even_started(tmp_path: Path) -> None:
    def forbidden(argv: Sequence[str]) -> Said | None:
        raise AssertionError(argv)

    assert nvidia.find(tmp_path, forbidden) == Found()


def test_nvidia_smi_is_asked_where_the_library_does_not_answer(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/driver/nvidia/version": "NVRM version\n"})
    crashed = Said(failed="ended with exit status 139")
    found = nvidia.find(tmp_path, tools(nvml=crashed, nvidia_smi=NVIDIA_SMI, nvidia_smi_query="8.9\n8.0\n"))
    assert len(found.accelerators) == 2 and not found.findings
    found = nvidia.find(tmp_path, tools(nvml="not json", nvidia_smi=Said(failed="did not answer within 3 s")))
    assert not found.accelerators and "did not answer within 3 s" in found.findings[0].what


def test_a_driver_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/driver/nvidia/version": "NVRM version\n"})
    asked: list[str] = []

    def hanging(argv: Sequence[str]) -> Said:
        asked.append(argv[0])
        return Said(failed="did not answer", hung=True)

    (finding,) = nvidia.find(tmp_path, hanging).findings
    assert "does not answer" in finding.what and len(asked) == 1
    assert len(amd.find(tmp_path, hanging).findings) == 1 and len(asked) == 2


def test_a_container_with_the_driver_and_without_its_libraries_is_told_how_to_start(tmp_path: Path) -> None:
    lay(tmp_path, {"dev/nvidiactl": ""})
    (finding,) = nvidia.find(tmp_path, tools(nvml=Said(failed="ended with exit status 3"))).findings
    assert "--gpus all" in finding.remedy


def test_the_kernel_tells_of_amd_gpus_without_any_tool(tmp_path: Path) -> None:
    found = amd.find(amd_tree(tmp_path, gpus=2), tools())
    assert [one.index for one in found.accelerators] == [0, 1] and not found.findings
    one = found.accelerators[0]
    assert (one.name, one.architecture, one.driver) == ("AMD Instinct MI300X OAM", "gfx942", "6.10.5")
    assert (one.memory_bytes, one.free_bytes) == (206141652992, 206141652992 - 301989888)


def test_amd_smi_is_asked_for_the_name_that_the_kernel_does_not_know(tmp_path: Path) -> None:
    root = amd_tree(tmp_path, name="")
    assert amd.find(root, tools(amd_smi=AMD_SMI)).accelerators[0].name == "AMD Instinct MI300X"
    assert amd.find(root, tools()).accelerators[0].name == "AMD gfx942"
    found = amd.find(root, tools(amd_smi=Said(failed="amd-smi did not answer within 3 s")))
    assert found.accelerators[0].name == "AMD gfx942" and len(found.findings) == 1


def test_a_user_who_may_not_open_the_device_is_told_which_groups_to_join(tmp_path: Path) -> None:
    root = amd_tree(tmp_path)
    (root / "dev/kfd").unlink()
    (finding,) = amd.find(root, tools()).findings
    assert "--device /dev/kfd" in finding.remedy


@pytest.mark.parametrize(
    ("version", "target"),
    [("90402", "gfx942"), ("90010", "gfx90a"), ("110501", "gfx1151"), ("100300", "gfx1030"), ("0", ""), ("x", "")],
)
def test_a_gfx_target_is_written_in_hex_from_the_kernels_decimal(version: str, target: str) -> None:
    assert amd.gfx_target(version) == target


@pytest.mark.parametrize("text", [AMD_SMI, AMD_SMI_7])
def test_amd_smi_before_and_since_rocm_7(text: str) -> None:
    (one,) = amd.from_amd_smi(text)
    assert (one.name, one.architecture, one.memory_bytes) == ("AMD Instinct MI300X", "gfx942", 196592 << 20)
    assert one.driver == "6.10.5"


def test_rocm_smi_in_either_spelling_of_its_keys() -> None:
    first, second = amd.from_rocm_smi(ROCM_SMI)
    assert (first.name, first.architecture, first.memory_bytes) == ("AMD Instinct MI300X", "gfx942", 206141652992)
    assert (second.name, second.free_bytes) == ("Radeon RX 7900 XTX", 25753026560 - 27848704)
    assert {first.driver, second.driver} == {"6.10.5"}


def test_npu_smi_is_read_from_its_table() -> None:
    first, second = ascend.from_npu_smi(NPU_SMI, "8.0.RC3")
    assert (first.name, first.architecture, first.driver) == ("Ascend 910B2C", "910B2C", "25.2.0")
    assert (first.memory_bytes, first.free_bytes) == (64 * GIB, (65536 - 59356) << 20)
    assert (first.processes, second.processes) == (2, 0)
    assert (first.healthy, second.healthy) == (True, False)


def test_npu_smi_of_a_board_with_two_chips_and_no_hbm() -> None:
    chips = ascend.from_npu_smi(NPU_SMI_310P)
    assert [(one.index, one.memory_bytes) for one in chips] == [(0, 44280 << 20), (1, 43693 << 20)]


def test_cann_says_its_version() -> None:
    assert ascend.cann_version("runtime_running_version=[7.5.0.1.129:8.0.RC3]\n") == "8.0.RC3"
    assert ascend.cann_version("") == ""


def test_apple_silicon_works_in_the_machines_own_memory() -> None:
    (gpu,) = apple.from_profiler(SYSTEM_PROFILER)
    assert (gpu.name, gpu.architecture, gpu.unified, gpu.memory_bytes) == (
        "Apple M2 Max GPU, 38 cores",
        "metal3",
        True,
        None,
    )


def test_apples_tool_is_asked_on_macos_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert len(apple.find(tmp_path, tools(system_profiler=SYSTEM_PROFILER)).accelerators) == 1
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert apple.find(tmp_path, tools(system_profiler=SYSTEM_PROFILER)) == Found()


def test_intels_gpus_and_npus_stand_in_sys(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for node, driver, own in (
        ("drm/card0", "i915", ""),
        ("drm/card1", "xe", "17179869184"),
        ("accel/accel0", "intel_vpu", ""),
    ):
        files[f"sys/class/{node}/device/vendor"] = "0x8086\n"
        files[f"sys/class/{node}/device/device"] = "0x56a0\n"
        files[f"sys/class/{node}/device/uevent"] = f"DRIVER={driver}\nPCI_CLASS=30000\n"
        if own:
            files[f"sys/class/{node}/lmem_total_bytes"] = own
    files["sys/class/drm/card2/device/vendor"] = "0x1a03\n"
    found = intel.find(lay(tmp_path, files), tools()).accelerators
    assert [(one.name, one.unified, one.memory_bytes) for one in found] == [
        ("Intel GPU 0x56a0", True, None),
        ("Intel GPU 0x56a0", False, 16 * GIB),
        ("Intel NPU 0x56a0", True, None),
    ]


def test_a_survey_asks_every_vendor_and_a_sick_one_is_a_finding(tmp_path: Path) -> None:
    root = amd_tree(tmp_path)
    lay(root, {"proc/driver/nvidia/version": "NVRM\n", "dev/davinci_manager": ""})
    found = survey(root, tools(nvml=NVML, npu_smi=NPU_SMI))
    assert [one.vendor for one in found.accelerators] == ["nvidia"] * 3 + ["amd"] + ["ascend"] * 2
    assert any("Ascend 910B2C" in one.what and "not healthy" in one.what for one in found.findings)


def test_a_card_on_the_bus_that_no_driver_answers_for_is_missed(tmp_path: Path) -> None:
    bus = "sys/bus/pci/devices/0000:01:00"
    lay(tmp_path, {f"{bus}.0/vendor": "0x10de\n", f"{bus}.0/class": "0x030200\n"})
    lay(tmp_path, {f"{bus}.1/vendor": "0x10de\n", f"{bus}.1/class": "0x040300\n"})
    (finding,) = survey(tmp_path, tools()).findings
    assert finding.what == "the PCI bus has 1 NVIDIA device and no driver answers"
    lay(tmp_path, {"proc/driver/nvidia/version": "NVRM\n"})
    (explained,) = survey(tmp_path, tools(nvml=Said(failed="hung"), nvidia_smi=Said(failed="hung"))).findings
    assert explained.what == "nvidia-smi: hung"


def test_a_machine_without_accelerators_has_the_fingerprint_that_it_had_before_there_were_any() -> None:
    """Evidence is bound to it; the hash was taken from the version that knew no accelerators."""
    machine = Machine(
        cores=8,
        memory_bytes=16 * GIB,
        available_bytes=GIB,
        cpu_model="Some Processor",
        isa=("avx", "avx2"),
        os="linux",
        arch="x86_64",
    )
    assert machine.fingerprint() == "ebad55d9e52a7ffcbe3662cb4a2ae62059c23c7d4bdedd07b1ae19558f7d199c"


def test_what_is_free_or_running_on_an_accelerator_is_no_part_of_the_fingerprint() -> None:
    idle = Accelerator(vendor="nvidia", index=0, name="A", memory_bytes=GIB, free_bytes=GIB, processes=0, driver="570")
    busy = Accelerator(vendor="nvidia", index=0, name="A", memory_bytes=GIB, free_bytes=7, processes=3, driver="570")
    newer = Accelerator(vendor="nvidia", index=0, name="A", memory_bytes=GIB, free_bytes=7, processes=3, driver="580")
    prints = [probe(accelerators=(one,)).fingerprint() for one in (idle, busy, newer)]
    assert prints[0] == prints[1] != prints[2]
    assert probe(accelerators=()).fingerprint() != prints[0]


@pytest.mark.parametrize(
    ("text", "version"), [("12.8", (12, 8)), ("570.124.06", (570, 124, 6)), ("8.0.RC3", (8, 0)), ("v6", (6,)), ("", ())]
)
def test_versions_are_compared_by_their_numbers(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


READERS: tuple[Callable[[str], object], ...] = (
    nvidia.from_nvml,
    nvidia.from_smi,
    amd.from_amd_smi,
    amd.from_rocm_smi,
    apple.from_profiler,
)
GOOD = (NVML, NVIDIA_SMI, AMD_SMI, ROCM_SMI, SYSTEM_PROFILER, NPU_SMI)
pieces = st.sampled_from(GOOD).flatmap(
    lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.text(max_size=5)).map(
        lambda cut: text[: cut[0]] + cut[2] + text[cut[1] :]
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["gpu_data", "card0", "system", "asic", "vram", "size", "value", "unit"]), inner
        )
    ),
    max_leaves=12,
)


@given(st.one_of(st.text(), pieces))
def test_whatever_a_tool_prints_is_read_or_refused(text: str) -> None:
    for read in READERS:
        with contextlib.suppress(ValueError):
            read(text)
    ascend.from_npu_smi(text)
    amd.properties(text)
    ascend.cann_version(text)


@given(json_values)
def test_json_of_any_shape_is_read_or_refused(value: object) -> None:
    import msgspec

    for read in (amd.from_amd_smi, amd.from_rocm_smi, apple.from_profiler, nvidia.from_nvml):
        with contextlib.suppress(ValueError):
            read(msgspec.json.encode(value).decode())


@given(st.lists(st.tuples(st.integers(0, 2**36), st.integers(1, 2**20)), max_size=16))
def test_as_many_npus_come_out_as_were_printed(usages: list[tuple[int, int]]) -> None:
    rows = [
        f"| {index}  910B3  | OK   | 90.0   37   0  / 0  |\n| 0  | 0000:C1:00.0  | 0   0    / 0   {used}/ {total} |"
        for index, (used, total) in enumerate(usages)
    ]
    found = ascend.from_npu_smi("\n".join(rows))
    assert [one.memory_bytes for one in found] == [total << 20 for _, total in usages]
    assert all(one.free_bytes is not None and one.free_bytes >= 0 for one in found)
