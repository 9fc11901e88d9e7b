"""Which build of an engine fits a machine, and why the others do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.engines.hosting import Built
from modelyard.engines.registry import engines
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.builds import VENDOR_OF, Build, choose_build
from modelyard.hardware.machine import Machine

CUDA = Build(name="cuda", arches=frozenset({"x86_64"}), least_architecture="7.5", least_runtime="12.8")
ROCM = Build(name="rocm", architectures=frozenset({"gfx90a", "gfx942"}))
CPU = Build(name="cpu", isa={"x86_64": frozenset({"avx2"})}, pythons=("3.11", "3.13"))
ALL = (CUDA, ROCM, CPU)


def machine(*accelerators: Accelerator, **changes: Any) -> Machine:
    facts: dict[str, Any] = {"os": "linux", "arch": "x86_64", "isa": ("avx2",), **changes}
    return Machine(
        cores=8, memory_bytes=1 << 34, available_bytes=1 << 34, cpu_model="x", accelerators=accelerators, **facts
    )


def nvidia(architecture: str = "9.0", runtime: str = "12.8", name: str = "H100", **more: Any) -> Accelerator:
    return Accelerator(
        vendor="nvidia", index=0, name=name, architecture=architecture, runtime=runtime, driver="570", **more
    )


def amd(architecture: str) -> Accelerator:
    return Accelerator(vendor="amd", index=0, name="Radeon", architecture=architecture)


def why_not(build: str, *accelerators: Accelerator, **changes: Any) -> str:
    rejected = choose_build(ALL, machine(*accelerators, **changes), changes.pop("python", "3.11.7")).rejected
    return next(one.reason for one in rejected if one.what == f"build {build}")


def test_without_accelerators_the_cpu_build_is_taken_and_the_others_say_what_is_missing() -> None:
    choice = choose_build(ALL, machine(), "3.11.7")
    assert (choice.name, choice.reason, choice.accelerators) == ("cpu", "it runs on this processor", ())
    assert [one.reason for one in choice.rejected] == ["no nvidia accelerator is here", "no amd accelerator is here"]


def test_an_accelerator_takes_its_own_build_and_every_one_that_fits_counts() -> None:
    choice = choose_build(ALL, machine(nvidia(), nvidia(), nvidia("6.1", name="P40")), "3.11.7")
    assert (choice.name, choice.reason, len(choice.accelerators)) == ("cuda", "2 x H100", 2)
    assert choose_build(ALL, machine(amd("gfx942")), "3.12").name == "rocm"


def test_an_old_driver_is_named_with_the_way_out() -> None:
    assert why_not("cuda", nvidia(runtime="12.2")) == (
        "needs CUDA 12.8, the driver 570 of H100 serves CUDA 12.2: update the driver"
    )


def test_an_old_board_or_one_without_kernels_is_named() -> None:
    assert why_not("cuda", nvidia("6.1", name="P40")) == "needs compute capability 7.5, P40 has 6.1"
    assert why_not("rocm", amd("gfx1030")) == "has no kernels for Radeon (gfx1030)"
    assert why_not("cuda", nvidia(healthy=False)) == "H100 is not healthy"


def test_compute_capability_10_is_more_than_9() -> None:
    assert choose_build(ALL, machine(nvidia("10.0", "13.0")), "3.11.7").name == "cuda"


def test_what_a_driver_does_not_say_is_not_held_against_it() -> None:
    assert choose_build(ALL, machine(nvidia("", "")), "3.11.7").name == "cuda"


@pytest.mark.parametrize(
    ("changes", "python", "reason"),
    [
        ({"isa": ()}, "3.11.7", "needs avx2, which this processor does not have"),
        ({"os": "darwin"}, "3.11.7", "runs on linux, this is darwin"),
        ({"arch": "riscv64"}, "3.11.7", "is built for aarch64, x86_64, this is riscv64"),
        ({}, "3.14.0", "has wheels for Python 3.11 to 3.13, this is 3.14.0"),
    ],
)
def test_no_build_at_all_says_why_each_does_not_fit(changes: dict[str, Any], python: str, reason: str) -> None:
    choice = choose_build((CPU,), machine(**changes), python)
    assert (choice.name, choice.reason) == (None, f"cpu: {reason}")


def test_macos_calls_arm_by_another_name() -> None:
    build = Build(name="cpu", systems=frozenset({"darwin"}), arches=frozenset({"aarch64"}))
    assert choose_build((build,), machine(os="darwin", arch="arm64"), "3.12").name == "cpu"


accelerators = st.builds(
    Accelerator,
    vendor=st.sampled_from(["nvidia", "amd", "ascend", "apple", "intel"]),
    index=st.just(0),
    name=st.just("A"),
    architecture=st.sampled_from(["", "6.1", "9.0", "gfx942", "gfx1030", "910B3"]),
    runtime=st.sampled_from(["", "11.7", "12.8", "13.0"]),
)


@given(st.lists(accelerators, max_size=4), st.permutations(ALL))
def test_a_choice_names_a_build_that_was_offered_and_every_other_before_it_is_explained(
    found: list[Accelerator], offered: list[Build]
) -> None:
    choice = choose_build(offered, machine(*found), "3.12.1")
    names = [one.name for one in offered]
    assert choice.name is not None  # the CPU build always fits this processor
    assert [one.what for one in choice.rejected] == [f"build {name}" for name in names[: names.index(choice.name)]]
    assert all(one.reason for one in choice.rejected)
    assert all(one.vendor == VENDOR_OF[choice.name] for one in choice.accelerators)
    assert bool(choice.accelerators) == (choice.name in VENDOR_OF)


def test_every_engine_that_names_builds_has_one_for_the_cpu_of_an_ordinary_machine() -> None:
    named = [one for one in engines() if isinstance(one, Built)]
    assert named
    for engine in named:
        choice = choose_build(engine.builds, machine(isa=("avx2", "fma")), "3.11.7")
        assert choice.name == "cpu", (engine.name, choice.reason)
