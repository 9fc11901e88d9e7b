"""Locks of engines: what they may say, and that each agrees with its adapter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelyard
from modelyard.engines.builds import BUILDS, builds, choose_build
from modelyard.engines.contract import Build, Engine, Requirements
from modelyard.engines.fake import FakeAdapter
from modelyard.engines.locks import BadLock, LockedPackage, flaws, gpu_packages, parse, render, shipped
from modelyard.engines.registry import engines
from modelyard.errors import UsageError

DIGEST = "0123456789abcdef" * 4
LOCK_FILES = sorted((Path(modelyard.__file__).parent / "engines" / "locks").glob("*.txt"))
LOCKED = [(one, needs) for one in engines() for needs in builds(one) if needs.packages and not needs.pinned_here]

names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True)
versions = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}(\+cpu)?", fullmatch=True)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
locked_packages = st.builds(
    LockedPackage,
    name=names,
    version=versions,
    sha256=st.lists(digests, min_size=1, max_size=4, unique=True).map(sorted).map(tuple),
    marker=st.sampled_from(["", "sys_platform == 'linux'", "python_full_version < '3.12' and os_name == 'posix'"]),
)


def needs(*packages: str, lock: str = "", build: Build = "cpu", without: tuple[str, ...] = ()) -> Requirements:
    return Requirements(
        packages=packages,
        version="1",
        download_bytes=1,
        installed_bytes=1,
        import_check="os",
        lock=lock,
        build=build,
        without=without,
    )


def lines(*pins: str) -> str:
    return "".join(f"{pin} --hash=sha256:{DIGEST}\n" for pin in pins)


@pytest.mark.parametrize(("engine", "requirements"), LOCKED, ids=lambda one: getattr(one, "name", None) or one.build)
def test_every_lock_agrees_with_its_adapter(engine: Engine, requirements: Requirements) -> None:
    assert flaws(requirements) == [], f"./yard dev python .ci/lock_engines.py {engine.name}"


@pytest.mark.parametrize(("engine", "requirements"), LOCKED, ids=lambda one: getattr(one, "name", None) or one.build)
def test_no_lock_names_an_address(engine: Engine, requirements: Requirements) -> None:
    assert "://" not in requirements.lock
    assert all(one.sha256 for one in parse(requirements.lock))


@pytest.mark.parametrize("file", LOCK_FILES, ids=lambda file: file.name)
def test_every_lock_that_ships_is_hashes_all_the_way(file: Path) -> None:
    packages = parse(file.read_text())
    assert packages and all(one.sha256 for one in packages)
    assert shipped(file.stem) == file.read_text()
    if file.stem.endswith("-cpu"):
        assert gpu_packages(f"{one.name}=={one.version}" for one in packages) == []


@given(st.lists(locked_packages, unique_by=lambda one: (one.name, one.version)))
def test_what_is_written_is_read_back(packages: list[LockedPackage]) -> None:
    text = render(packages, head="made by\na test")
    assert text.startswith("# made by\n# a test\n")
    assert parse(text) == tuple(sorted(packages, key=lambda one: (one.name, one.version)))


@given(st.text())
def test_anything_else_is_refused_and_never_half_understood(text: str) -> None:
    try:
        found = parse(text)
    except BadLock:
        return
    assert all(one.sha256 and re.fullmatch(r"[a-z0-9-]+", one.name) for one in found)


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6",
        f"numpy>=2 --hash=sha256:{DIGEST}",
        f"numpy==2.* --hash=sha256:{DIGEST}",
        f"numpy @ https://evil.invalid/numpy.whl --hash=sha256:{DIGEST}",
        f"numpy==2.4.6 --hash=md5:{DIGEST[:32]}",
        f"numpy==2.4.6 --hash=sha256:{DIGEST[:63]}",
        "--index-url https://evil.invalid/simple",
        "-r other.txt",
        "-e .",
    ],
)
def test_a_line_that_is_no_package_with_hashes_is_refused(line: str) -> None:
    with pytest.raises(BadLock):
        parse(line)


def test_lines_may_go_on_and_comments_are_nothing() -> None:
    text = f"# head\nA_b==1.0 ; python_version < '3.12' \\\n    --hash=sha256:{DIGEST} \\\n    --hash=sha256:{DIGEST}\n"
    assert parse(text) == (
        LockedPackage(name="a-b", version="1.0", sha256=(DIGEST, DIGEST), marker="python_version < '3.12'"),
    )


@pytest.mark.parametrize(
    ("requirements", "flaw"),
    [
        (needs("a==1"), "it has no lock"),
        (needs("a==1", lock="a==1"), "a==1 has no hash"),
        (needs("a==2", lock=lines("a==1")), "a==2 is not in the lock"),
        (needs("a==1", lock=lines("a==1", "b-c==1"), without=("B_c",)), "b-c is in the lock and was to be left out"),
        (needs("a==1", lock=lines("a==1", "nvidia-nccl-cu13==2")), "nvidia-nccl-cu13==2 is for GPUs"),
        (needs("a==1", lock=lines("a==1", "torch==2.13.0+cu130")), "torch==2.13.0+cu130 is for GPUs"),
    ],
)
def test_a_lock_that_is_not_what_the_adapter_asks_for_is_told(requirements: Requirements, flaw: str) -> None:
    assert flaws(requirements) == [flaw]


def test_a_gpu_build_may_have_gpu_packages_and_needs_a_lock_too() -> None:
    assert flaws(needs("a==1", lock=lines("a==1", "nvidia-nccl-cu13==2"), build="cuda")) == []
    assert flaws(needs("a==1", build="cuda")) == ["it has no lock"]


GPU = ["nvidia-cublas==1", "nvidia_ml==1", "cuda-python==13", "cuda-bindings==13", "cupy-cuda13x==14", "triton==3"]
GPU += ["pytorch-triton-rocm==3", "torch==2.13.0+cu130", "torch==2.13.0+rocm7.0", "torch==2.13.0+xpu", "amdsmi==7"]


@pytest.mark.parametrize("pin", GPU)
def test_a_package_for_gpus_is_known_by_its_name_or_its_suffix(pin: str) -> None:
    assert gpu_packages([pin, "numpy==2"]) == [pin]


@pytest.mark.parametrize("pin", ["torch==2.13.0", "torch==2.13.0+cpu", "triton-cpu==3", "mynvidia==1", "barracuda==1"])
def test_a_package_for_cpus_is_none(pin: str) -> None:
    assert gpu_packages([pin]) == []


def test_a_lock_that_nobody_has_made_is_empty() -> None:
    assert shipped("no-such-engine-cpu") == ""


class Vast(FakeAdapter):
    gpu_builds = (needs("a==1", build="cuda"),)


def test_the_build_that_suits_the_machine_is_taken_where_there_is_one() -> None:
    assert choose_build(Vast()).build == "cpu"
    assert choose_build(Vast(), suited="cuda").build == "cuda"
    assert choose_build(Vast(), suited="rocm").build == "cpu", "it has none for rocm, and runs without"
    assert choose_build(FakeAdapter(), suited="cuda") == FakeAdapter.requirements


def test_what_is_asked_for_wins_and_must_exist() -> None:
    assert choose_build(Vast(), suited="cuda", asked="cpu").build == "cpu"
    with pytest.raises(UsageError, match="fake has no build for rocm") as caught:
        choose_build(Vast(), asked="rocm")
    assert caught.value.hint == "builds of fake: cpu, cuda"
    with pytest.raises(UsageError, match="no build called 'gpu'"):
        choose_build(Vast(), asked="gpu")
    assert set(BUILDS) == {"cpu", "cuda", "rocm"}
