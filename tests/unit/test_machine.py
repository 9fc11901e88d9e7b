"""Recorded texts of real machines: what is ours of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from modelyard.hardware.cgroup import Allowance, allowance, core_limit, memory_limit, mounted_groups
from modelyard.hardware.machine import cpu_model, disk_free_bytes, isa, memory, probe, usable_cores

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R)   Platinum 8481C
flags\t\t: fpu sse avx f16c fma avx2 avx512f avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8 hypervisor

processor\t: 1
model name\t: Intel(R) Xeon(R)   Platinum 8481C
flags\t\t: fpu sse avx f16c fma avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8 hypervisor
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
CPU revision\t: 1
"""
MEMINFO = "MemTotal:       24683656 kB\nMemFree:        22854504 kB\nMemAvailable:   24293436 kB\nHugePages_Total:  0\n"

V2_CGROUP = "0::/user.slice/app.service\n"
V2_MOUNTS = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nsdelegate 0 0\n"
V1_CGROUP = "9:name=systemd:/\n5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n"
V1_MOUNTS = (
    "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n"
    "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
    "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_an_instruction_set_counts_only_when_every_processor_has_it() -> None:
    assert "avx512_vnni" in isa(XEON) and "amx_int8" in isa(XEON)
    assert "avx_vnni" not in isa(XEON)
    assert isa(XEON) == tuple(sorted(isa(XEON)))


def test_arm_features_are_known_by_our_names() -> None:
    assert isa(GRAVITON) == ("bf16", "dotprod", "fp16", "i8mm", "neon", "sve")
    assert cpu_model(GRAVITON) == "arm 0x41 0xd40 1"


def test_the_cpu_name_has_single_spaces() -> None:
    assert cpu_model(XEON) == "Intel(R) Xeon(R) Platinum 8481C"


def test_meminfo_counts_in_kibibytes() -> None:
    assert memory(MEMINFO) == (24683656 * 1024, 24293436 * 1024)
    assert memory("") is None


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"), [(8, None, 8), (8, 2.0, 2), (2, 8.0, 2), (8, 1.5, 1), (8, 0.25, 1)]
)
def test_cores_are_the_affinity_within_the_quota_and_at_least_one(
    affinity: int, quota: float | None, cores: int
) -> None:
    assert usable_cores(affinity, quota) == cores


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("-1 100000", None), ("", None), ("5 0", None)]
)
def test_a_cpu_quota_is_time_per_period(text: str, cores: float | None) -> None:
    assert core_limit(text) == cores


@pytest.mark.parametrize(
    ("text", "limit"), [("536870912\n", 1 << 29), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
)
def test_no_memory_limit_is_written_in_two_ways(text: str, limit: int | None) -> None:
    assert memory_limit(text) == limit


def test_the_groups_of_both_versions_are_found_where_they_are_mounted() -> None:
    assert mounted_groups(V2_CGROUP, V2_MOUNTS) == [("/sys/fs/cgroup", "/user.slice/app.service")]
    assert mounted_groups(V1_CGROUP, V1_MOUNTS) == [
        ("/sys/fs/cgroup/cpu,cpuacct", "/docker/ab"),
        ("/sys/fs/cgroup/memory", "/docker/ab"),
        ("/sys/fs/cgroup/unified", "/"),
    ]


def test_version_2_the_tightest_group_on_the_way_up_holds(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user.slice"
    lay(
        tmp_path,
        {
            "proc/self/cgroup": V2_CGROUP,
            "proc/self/mounts": V2_MOUNTS,
            f"{group}/app.service/memory.max": "max\n",
            f"{group}/app.service/cpu.max": "400000 100000\n",
            f"{group}/memory.max": "1000000000\n",
            f"{group}/memory.current": "600000000\n",
            f"{group}/memory.stat": "anon 1\ninactive_file 100000000\n",
            f"{group}/cpu.max": "250000 100000\n",
        },
    )
    assert allowance(tmp_path) == Allowance(cores=2.5, memory_bytes=1_000_000_000, free_bytes=500_000_000)


def test_version_1_in_a_container_that_sees_the_group_of_the_host(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "proc/self/cgroup": V1_CGROUP,
            "proc/self/mounts": V1_MOUNTS,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000000\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 250000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
        },
    )
    assert allowance(tmp_path) == Allowance(cores=2.0, memory_bytes=2_000_000_000, free_bytes=750_000_000)


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert allowance(tmp_path) == Allowance()


def test_a_probe_takes_the_smaller_of_machine_and_group(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "proc/cpuinfo": XEON,
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": V2_CGROUP,
            "proc/self/mounts": V2_MOUNTS,
            "sys/fs/cgroup/memory.max": "1073741824",
            "sys/fs/cgroup/memory.current": "1000",
            "sys/fs/cgroup/cpu.max": "100000 100000",
        },
    )
    machine = probe(tmp_path)
    assert (machine.cores, machine.memory_bytes, machine.available_bytes) == (1, 1 << 30, (1 << 30) - 1000)


def test_this_machine_can_be_probed() -> None:
    machine = probe()
    assert machine.cores >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes


def test_the_fingerprint_ignores_free_memory_and_notices_everything_else() -> None:
    machine = probe()
    machine = msgspec.structs.replace(machine, memory_bytes=8 << 30)
    for change in ({"available_bytes": 1}, {"memory_bytes": (8 << 30) + 4096}):
        assert msgspec.structs.replace(machine, **change).fingerprint() == machine.fingerprint()
    for change in ({"cores": 99}, {"memory_bytes": 1}, {"isa": ("avx9",)}, {"cpu_model": "x"}, {"arch": "vax"}):
        assert msgspec.structs.replace(machine, **change).fingerprint() != machine.fingerprint()


def test_free_disk_of_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert disk_free_bytes(tmp_path / "not" / "yet") > 0
