"""Recorded trees of real machines: their layout, what they run inside of, their disk; and what that means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.hardware.details import Details, Disk, cgroup_version, cpu_list, file_system_of, look
from modelyard.hardware.health import Process, judge
from modelyard.hardware.machine import Machine

CPUS = "sys/devices/system/cpu"
GIB = 1 << 30


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def two_sockets(root: Path) -> Path:
    """Two sockets of two cores with two threads each, as Linux numbers them; a NUMA node and an L3 for each socket."""
    files = {f"{CPUS}/online": "0-7\n"}
    for cpu in range(8):
        core = cpu % 4
        socket = core // 2
        shared = "0-1,4-5" if socket == 0 else "2-3,6-7"
        files[f"{CPUS}/cpu{cpu}/topology/core_id"] = f"{core % 2}\n"
        files[f"{CPUS}/cpu{cpu}/topology/physical_package_id"] = f"{socket}\n"
        for index, level, kind, size, sharing in (
            (0, 1, "Data", "48K", f"{core},{core + 4}"),
            (1, 1, "Instruction", "32K", f"{core},{core + 4}"),
            (3, 3, "Unified", "32768K", shared),
        ):
            cache = f"{CPUS}/cpu{cpu}/cache/index{index}"
            files[f"{cache}/level"], files[f"{cache}/type"] = f"{level}\n", f"{kind}\n"
            files[f"{cache}/size"], files[f"{cache}/shared_cpu_list"] = f"{size}\n", f"{sharing}\n"
    files["sys/devices/system/node/node0/cpulist"] = "0-1,4-5\n"
    files["sys/devices/system/node/node1/cpulist"] = "2-3,6-7\n"
    return lay(root, files)


def test_the_whole_of_a_machine_with_two_sockets(tmp_path: Path) -> None:
    found = look(tmp_path, two_sockets(tmp_path / "root"), frozenset(range(8)))
    assert (found.online, found.allowed, found.physical_cores) == (8, 8, 4)
    assert (found.sockets, found.numa_nodes, found.last_level_cache_bytes) == (2, 2, 64 << 20)


def test_only_what_our_threads_touch_counts(tmp_path: Path) -> None:
    found = look(tmp_path, two_sockets(tmp_path / "root"), frozenset({0, 4, 1}))
    assert (found.allowed, found.physical_cores, found.sockets, found.numa_nodes) == (3, 2, 1, 1)
    assert found.last_level_cache_bytes == 32 << 20


def test_a_kernel_that_shows_nothing_leaves_nothing_known(tmp_path: Path) -> None:
    found = look(tmp_path, tmp_path / "root", frozenset({0}))
    assert (found.physical_cores, found.numa_nodes, found.last_level_cache_bytes, found.inside) == (0, 0, 0, ())
    assert (found.cgroups, found.swap_bytes, found.disk.kind, found.disk.file_system) == ("none", 0, "", "")


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        (
            {"proc/cpuinfo": "flags : fpu hypervisor\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"},
            "a virtual machine (KVM)",
        ),
        ({"proc/cpuinfo": "flags\t\t: fpu hypervisor\n"}, "a virtual machine"),
        ({"proc/cpuinfo": "flags : fpu sse\n", ".dockerenv": ""}, "a Docker container"),
        ({"proc/version": "Linux version 5.15 (Microsoft@Microsoft.com)"}, "WSL"),
        ({"run/.containerenv": "engine=podman"}, "a Podman container"),
        ({"var/run/secrets/kubernetes.io/serviceaccount/token": "x"}, "a Kubernetes pod"),
    ],
)
def test_what_we_run_inside_of_shows_itself(tmp_path: Path, files: dict[str, str], inside: str) -> None:
    assert look(tmp_path, lay(tmp_path / "root", files), frozenset({0})).inside == (inside,)


def test_the_disk_of_the_state_directory_is_known_by_its_device(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    root = lay(
        tmp_path / "root",
        {
            f"sys/dev/block/{number}/queue/rotational": "1\n",
            "proc/self/mountinfo": f"22 1 {number} / / rw shared:1 - ext4 /dev/sda1 rw\n",
        },
    )
    disk = look(tmp_path / "not" / "yet", root, frozenset({0})).disk
    assert (disk.folder, disk.file_system, disk.kind) == (str(tmp_path), "ext4", "rotating")
    lay(root, {"proc/self/mountinfo": f"22 1 {number} / / rw - nfs4 server:/home rw\n"})
    assert look(tmp_path, root, frozenset({0})).disk.kind == "network"


def test_a_line_without_its_second_half_names_no_file_system() -> None:
    assert file_system_of("22 1 8:1 / / rw\nshort\n", "8:1") == ""


@pytest.mark.parametrize(
    ("mounts", "version"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "v2"),
        ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "v1"),
        ("cgroup /a cgroup rw 0 0\ncgroup2 /b cgroup2 rw 0 0\n", "hybrid"),
        ("proc /proc proc rw 0 0\n", "none"),
    ],
)
def test_the_version_of_control_groups(mounts: str, version: str) -> None:
    assert cgroup_version(mounts) == version


@given(st.sets(st.integers(0, 300)))
def test_a_list_of_processors_survives_being_written_as_ranges(cpus: set[int]) -> None:
    ordered, parts = sorted(cpus), list[str]()
    while ordered:
        last = next(i for i in range(len(ordered)) if i + 1 == len(ordered) or ordered[i + 1] != ordered[i] + 1)
        parts.append(f"{ordered[0]}-{ordered[last]}" if last else str(ordered[0]))
        ordered = ordered[last + 1 :]
    assert cpu_list(",".join(parts) + "\n") == cpus


@given(st.text(alphabet="0123456789-,x \n", max_size=12))
def test_a_list_of_processors_that_is_none_is_never_an_error(text: str) -> None:
    assert all(0 <= cpu <= 9999 for cpu in cpu_list(text))


GOOD_DISK = Disk(folder="/state", free_bytes=100 * GIB, file_system="ext4", kind="solid state")
GOOD = Details(
    online=8,
    allowed=8,
    quota_cores=None,
    physical_cores=8,
    sockets=1,
    numa_nodes=1,
    last_level_cache_bytes=32 << 20,
    cgroups="v2",
    inside=(),
    transparent_huge_pages="madvise",
    swap_bytes=0,
    shared_memory_bytes=8 * GIB,
    disk=GOOD_DISK,
)
MACHINE = Machine(
    cores=8,
    memory_bytes=32 * GIB,
    available_bytes=30 * GIB,
    cpu_model="x",
    isa=("avx2",),
    os="linux",
    arch="x86_64",
)
PROCESS = Process(open_files=1 << 20, libc="glibc", now=2e9, written_at=1.9e9)


def said(
    machine: dict[str, Any] | None = None, details: dict[str, Any] | None = None, process: Process = PROCESS
) -> list[tuple[str, str]]:
    disk = (details or {}).pop("disk", {})
    changed = msgspec.structs.replace(GOOD, disk=msgspec.structs.replace(GOOD_DISK, **disk), **(details or {}))
    findings = judge(msgspec.structs.replace(MACHINE, **(machine or {})), changed, process)
    assert all(one.why and (one.remedy or one.severity == "note") for one in findings)
    return [(one.severity, one.check) for one in findings]


def test_a_good_machine_has_nothing_to_be_said_of_it() -> None:
    assert said() == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"machine": {"available_bytes": 300 << 20}}, ("error", "memory")),
        ({"machine": {"available_bytes": 1 * GIB}}, ("warning", "memory")),
        ({"machine": {"isa": ("avx",)}}, ("warning", "isa")),
        ({"details": {"quota_cores": 1.5}}, ("warning", "cores")),
        ({"details": {"quota_cores": 4.0}}, ("note", "cores")),
        ({"details": {"physical_cores": 4}}, ("note", "cores")),
        ({"details": {"numa_nodes": 2}}, ("note", "numa")),
        ({"details": {"shared_memory_bytes": 64 << 20}}, ("note", "shared memory")),
        ({"details": {"disk": {"free_bytes": 500 << 20}}}, ("error", "disk")),
        ({"details": {"disk": {"free_bytes": 2 * GIB}}}, ("warning", "disk")),
        ({"details": {"disk": {"kind": "network", "file_system": "nfs4"}}}, ("warning", "disk")),
        ({"details": {"disk": {"kind": "memory", "file_system": "tmpfs"}}}, ("warning", "disk")),
        ({"process": Process(1024, "glibc", 2e9, 1.9e9)}, ("warning", "open files")),
        ({"process": Process(1 << 20, "musl", 2e9, 1.9e9)}, ("warning", "libc")),
        ({"process": Process(1 << 20, "glibc", 1.6e9, 1.9e9)}, ("error", "clock")),
    ],
)
def test_each_shortcoming_is_one_finding_with_its_remedy(changes: dict[str, Any], finding: tuple[str, str]) -> None:
    assert said(**changes) == [finding]


def test_no_limit_of_open_files_is_no_finding() -> None:
    assert said(process=Process(-1, "", 2e9, 1.9e9)) == []


def test_this_machine_has_details() -> None:
    found = look(Path("/tmp"))
    assert 1 <= found.allowed <= found.online and found.disk.free_bytes > 0
