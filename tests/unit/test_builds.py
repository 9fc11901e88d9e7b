"""Which build of an engine fits a machine, and why the others do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.engines.contract import Requirements
from modelyard.engines.fake import FakeAdapter
from modelyard.engines.hosting import requirements_here, suited_build
from modelyard.engines.registry import engines
from modelyard.errors import UsageError
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.builds import VENDOR_OF, BuildNeeds, fitting_build
from modelyard.hardware.machine import Machine

PLAIN: dict[str, frozenset[str]] = {"x86_64": frozenset(), "aarch64": frozenset()}
CUDA = BuildNeeds(build="cuda", machines={"x86_64": frozenset()}, least_architecture="7.5", least_runtime="12.8")
ROCM = BuildNeeds(build="rocm", machines=PLAIN, architectures=frozenset({"gfx90a", "gfx942"}))
CPU = BuildNeeds(build="cpu", machines={"x86_64": frozenset({"avx2"}), "aarch64": frozenset()})
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
    rejected = fitting_build(ALL, machine(*accelerators, **changes), changes.pop("python", "3.11.7")).rejected
    return next(one.reason for one in rejected if one.what == f"build {build}")


def test_without_accelerators_the_cpu_build_is_taken_and_the_others_say_what_is_missing() -> None:
    choice = fitting_build(ALL, machine(), "3.11.7")
    assert (choice.build, choice.reason, choice.accelerators) == ("cpu", "it runs on this processor", ())
    assert [one.reason for one in choice.rejected] == ["no nvidia accelerator is here", "no amd accelerator is here"]


def test_an_accelerator_takes_its_own_build_and_every_one_that_fits_counts() -> None:
    choice = fitting_build(ALL, machine(nvidia(), nvidia(), nvidia("6.1", name="P40")), "3.11.7")
    assert (choice.build, choice.reason, len(choice.accelerators)) == ("cuda", "2 x H100", 2)
    assert fitting_build(ALL, machine(amd("gfx942")), "3.12").build == "rocm"


def test_an_old_driver_is_named_with_the_way_out() -> None:
    assert why_not("cuda", nvidia(runtime="12.2")) == (
        "needs CUDA 12.8, the driver 570 of H100 serves CUDA 12.2: update the driver"
    )


def test_an_old_board_or_one_without_kernels_is_named() -> None:
    assert why_not("cuda", nvidia("6.1", name="P40")) == "needs compute capability 7.5, P40 has 6.1"
    assert why_not("rocm", amd("gfx1030")) == "has no kernels for Radeon (gfx1030)"
    assert why_not("cuda", nvidia(healthy=False)) == "H100 is not healthy"


def test_compute_capability_10_is_more_than_9() -> None:
    assert fitting_build(ALL, machine(nvidia("10.0", "13.0")), "3.11.7").build == "cuda"


def test_what_a_driver_does_not_say_is_not_held_against_it() -> None:
    assert fitting_build(ALL, machine(nvidia("", "")), "3.11.7").build == "cuda"


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
    choice = fitting_build((CPU,), machine(**changes), python)
    assert (choice.build, choice.reason) == (None, f"cpu: {reason}")


def test_macos_calls_arm_by_another_name() -> None:
    needs = BuildNeeds(build="cpu", machines=PLAIN, systems=frozenset({"darwin"}))
    assert fitting_build((needs,), machine(os="darwin", arch="arm64"), "3.12").build == "cpu"


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
    found: list[Accelerator], offered: list[BuildNeeds]
) -> None:
    choice = fitting_build(offered, machine(*found), "3.12.1")
    names = [one.build for one in offered]
    assert choice.build is not None  # the CPU build always fits this processor
    assert [one.what for one in choice.rejected] == [f"build {name}" for name in names[: names.index(choice.build)]]
    assert all(one.reason for one in choice.rejected)
    assert all(one.vendor == VENDOR_OF[choice.build] for one in choice.accelerators)
    assert bool(choice.accelerators) == (choice.build in VENDOR_OF)


def packages(build: Any) -> Requirements:
    return Requirements(
        packages=("a==1",), version="1", download_bytes=1, installed_bytes=1, import_check="a", build=build
    )


class Plainly(FakeAdapter):
    """Exists for NVIDIA and for processors alone, and says nothing more."""

    requirements = packages("cpu")
    gpu_builds = (packages("cuda"),)


class Precisely(Plainly):
    build_needs = (CUDA,)


def test_an_engine_that_says_nothing_of_its_builds_takes_the_one_that_its_name_calls_for() -> None:
    assert suited_build(Plainly(), machine(nvidia(runtime="11.0")), "3.11.7").build == "cuda"
    fit = suited_build(Plainly(), machine(amd("gfx942")), "3.11.7")
    assert (fit.build, [one.what for one in fit.rejected]) == ("cpu", ["build cuda"])


def test_an_engine_that_knows_more_of_a_build_is_heard() -> None:
    assert suited_build(Precisely(), machine(nvidia(runtime="11.0")), "3.11.7").build == "cpu"
    assert suited_build(Precisely(), machine(nvidia()), "3.11.7").build == "cuda"


def test_the_environment_is_that_of_the_suited_build_unless_another_is_asked_for() -> None:
    here = machine(nvidia())
    assert requirements_here(Precisely(), here, "3.11.7").build == "cuda"
    assert requirements_here(Precisely(), here, "3.11.7", asked="cpu").build == "cpu"
    assert requirements_here(Precisely(), machine(arch="vax"), "3.11.7").build == "cpu"
    with pytest.raises(UsageError, match="has no build for rocm"):
        requirements_here(Precisely(), here, "3.11.7", asked="rocm")


def test_every_engine_has_a_build_for_an_ordinary_server() -> None:
    for engine in engines():
        server = machine(isa=("avx", "avx2", "avx512bw", "avx512f", "avx512_vnni", "f16c", "fma"))
        fit = suited_build(engine, server, "3.11.7")
        assert fit.build == "cpu", (engine.name, fit.reason)
