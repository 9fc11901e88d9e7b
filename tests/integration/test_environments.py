"""Environments made by the real uv from wheels made here: no index, no network."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.package_index import lock_of, serve, wheel

from modelyard import packages
from modelyard.engines.contract import Installed, Requirements
from modelyard.errors import EnvironmentFailed
from modelyard.node import installing
from modelyard.node.environments import ensure, list_environments, remove
from modelyard.node.installing import Uv, explain
from modelyard.node.making import MARKER, InstallProgress
from modelyard.packages import uv_command
from modelyard.settings import PackageIndex
from modelyard.state import StateDirectory

Eventually = Callable[..., Awaitable[object]]


def needs(*packages: str, module: str = "tinyengine", installed_bytes: int = 1) -> Requirements:
    return Requirements(
        packages=packages, version="1.0", download_bytes=1, installed_bytes=installed_bytes, import_check=module
    )


TINY = needs("tinyengine==1.0")


def locked(requirements: Requirements, wheels: Path, **changes: object) -> Requirements:
    """With a lock of the wheels in a folder, as they are now."""
    return msgspec.structs.replace(requirements, lock=lock_of(wheels, *requirements.packages), **changes)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    wheel(tmp_path / "wheels", "tinyengine")
    return tmp_path / "wheels"


@pytest.fixture
def index(wheels: Path) -> PackageIndex:
    return PackageIndex(find_links=(str(wheels),), offline=True)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": os.defpath, "HOME": str(home), "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_NO_CONFIG": "1"}


@pytest.fixture
def make(state: StateDirectory, index: PackageIndex, environ: dict[str, str], wheels: Path) -> Callable[..., Installed]:
    def made(requirements: Requirements = TINY, stages: list[InstallProgress] | None = None) -> Installed:
        told: list[InstallProgress] = [] if stages is None else stages
        needed = requirements if requirements.lock else locked(requirements, wheels)
        return ensure(needed, "tiny", state, index, told.append, environ=environ)

    return made


def folders(state: StateDirectory) -> list[Path]:
    return [path for path in state.environments.iterdir() if path.is_dir()]


def test_an_environment_is_made_once_and_runs_its_package(
    make: Callable[..., Installed], state: StateDirectory
) -> None:
    stages: list[InstallProgress] = []
    installed = make(stages=stages)
    assert [stages[0].stage, stages[-1].stage] == ["environment", "import"]
    subprocess.run([installed.python, "-I", "-c", "import tinyengine"], check=True)
    assert Path(installed.python).is_relative_to(state.environments)
    again: list[InstallProgress] = []
    assert make(stages=again) == installed
    assert again == []
    assert list_environments(state) == (installed,)


def test_the_lock_hash_follows_what_was_installed(make: Callable[..., Installed], wheels: Path) -> None:
    wheel(wheels, "tinyengine", "2.0")
    one, two = make(), make(needs("tinyengine==2.0"))
    assert one.root != two.root
    assert one.lock_sha256 != two.lock_sha256


def test_an_engine_without_packages_runs_in_our_own_interpreter(
    make: Callable[..., Installed], state: StateDirectory
) -> None:
    assert make(needs(module="asyncio")).python == sys.executable
    assert folders(state) == []


def test_a_package_that_cannot_be_imported_leaves_nothing(
    make: Callable[..., Installed], state: StateDirectory, wheels: Path
) -> None:
    wheel(wheels, "broken", code="raise ImportError('libabsent.so.1: cannot open shared object file')")
    with pytest.raises(EnvironmentFailed, match=r"broken was installed and cannot be imported.*libabsent"):
        make(needs("broken==1.0", module="broken"))
    assert folders(state) == []


def test_the_import_check_inherits_nothing(
    make: Callable[..., Installed], wheels: Path, environ: dict[str, str]
) -> None:
    environ["SECRET_OF_THE_PARENT"] = "x"
    wheel(wheels, "curious", code="import os\nassert 'SECRET_OF_THE_PARENT' not in os.environ")
    assert make(needs("curious==1.0", module="curious"))


def test_a_version_that_no_index_has_is_named(make: Callable[..., Installed], state: StateDirectory) -> None:
    with pytest.raises(EnvironmentFailed) as caught:
        make(needs("tinyengine==9.9"))
    assert "version" in caught.value.message or "offline" in caught.value.message
    assert "uv said:" in caught.value.hint and "tinyengine" in caught.value.hint
    assert folders(state) == []


def test_an_index_out_of_reach_is_named(state: StateDirectory, environ: dict[str, str], wheels: Path) -> None:
    nobody = PackageIndex(index_url="http://127.0.0.1:9/simple")
    environ |= {"UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5", "NO_PROXY": "*"}
    with pytest.raises(EnvironmentFailed, match="cannot be reached") as caught:
        ensure(locked(TINY, wheels), "tiny", state, nobody, lambda _: None, environ=environ)
    assert "MODELYARD_INDEX_URL" in caught.value.hint
    assert folders(state) == []


def test_a_full_disk_is_noticed_before_anything_is_written(
    make: Callable[..., Installed], state: StateDirectory
) -> None:
    with pytest.raises(EnvironmentFailed, match=r"free, the environment needs .* TiB"):
        make(needs("tinyengine==1.0", installed_bytes=1 << 60))
    assert folders(state) == []


def test_a_wheel_that_is_not_the_locked_one_is_not_installed(
    make: Callable[..., Installed], state: StateDirectory, wheels: Path
) -> None:
    needed = locked(TINY, wheels)
    wheel(wheels, "tinyengine", code="import os  # somebody else's\n")
    with pytest.raises(EnvironmentFailed, match="not the one that the lock names"):
        make(needed)
    assert folders(state) == []


def test_without_a_lock_nothing_is_installed(
    state: StateDirectory, index: PackageIndex, environ: dict[str, str]
) -> None:
    with pytest.raises(EnvironmentFailed, match=r"the lock of tiny \(cpu\) is not sound: it has no lock"):
        ensure(TINY, "tiny", state, index, lambda _: None, environ=environ)


def test_gpu_packages_in_a_cpu_lock_are_refused_before_anything_is_fetched(
    make: Callable[..., Installed], state: StateDirectory, wheels: Path
) -> None:
    wheel(wheels, "nvidia_cublas")
    with pytest.raises(EnvironmentFailed, match=r"nvidia-cublas==1\.0 is for GPUs"):
        make(needs("tinyengine==1.0", "nvidia-cublas==1.0"))
    assert folders(state) == []
    gpu = msgspec.structs.replace(needs("tinyengine==1.0", "nvidia-cublas==1.0"), build="cuda")
    assert make(gpu).build == "cuda"


def test_gpu_packages_that_came_all_the_same_are_refused_and_removed(
    make: Callable[..., Installed], state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uv, "freeze", lambda *_: ("nvidia-cublas==1.0", "tinyengine==1.0"))
    with pytest.raises(EnvironmentFailed, match=r"GPU packages: nvidia-cublas==1\.0"):
        make()
    assert folders(state) == []


def test_what_the_lock_does_not_name_is_refused(
    make: Callable[..., Installed], state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uv, "freeze", lambda *_: ("stranger==1.0", "tinyengine==1.0"))
    with pytest.raises(EnvironmentFailed, match=r"its lock does not name: stranger==1\.0"):
        make()
    assert folders(state) == []


def version_of(installed: Installed) -> str:
    program = "import importlib.metadata as m; print(m.version('tinyengine'))"
    return subprocess.run([installed.python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout


def test_the_local_build_is_taken_where_the_index_has_it(
    make: Callable[..., Installed], wheels: Path, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(wheels, "tinyengine", "1.0+cpu")
    needed = locked(TINY, wheels, local_builds=("tinyengine",))
    assert needed.lock.count("--hash") == 2
    installed = make(needed)
    assert version_of(installed) == "1.0+cpu\n"
    remove(installed, state)
    (wheels / "tinyengine-1.0+cpu-py3-none-any.whl").unlink()
    with pytest.raises(EnvironmentFailed, match=r"only the build for GPUs of tinyengine==1\.0") as caught:
        make(needed)
    assert "tinyengine==1.0+cpu" in caught.value.hint and folders(state) == []
    monkeypatch.setattr(sys, "platform", "darwin")
    assert version_of(make(needed)) == "1.0\n", "where the plain build is for CPUs"


def test_a_local_build_for_gpus_is_refused_before_it_is_fetched(
    state: StateDirectory, wheels: Path, environ: dict[str, str]
) -> None:
    wheel(wheels, "tinyengine", "1.0+cu130")
    with serve(wheels) as counted:
        index = PackageIndex(index_url=counted.url)
        needed = locked(TINY, wheels, local_builds=("tinyengine",))
        with pytest.raises(EnvironmentFailed, match=r"GPU packages: tinyengine==1\.0\+cu130"):
            ensure(needed, "tiny", state, index, lambda _: None, environ=environ)
        assert not [name for name in counted.asked if name.endswith(".whl")]
    assert folders(state) == []


def test_what_an_engine_does_not_name_is_not_installed(make: Callable[..., Installed], wheels: Path) -> None:
    wheel(wheels, "reporter")
    wheel(wheels, "tinyengine", "3.0", requires="reporter")
    installed = make(needs("tinyengine==3.0"))
    assert subprocess.run([installed.python, "-I", "-c", "import reporter"], capture_output=True).returncode == 1


def test_half_an_environment_is_not_trusted(make: Callable[..., Installed], state: StateDirectory) -> None:
    installed = make()
    root = Path(installed.root)
    (root / MARKER).unlink()
    (root / "leftover").touch()
    assert list_environments(state) == ()
    assert make() == installed
    assert not (root / "leftover").exists()


def test_an_environment_whose_python_is_gone_is_made_again(make: Callable[..., Installed]) -> None:
    installed = make()
    Path(installed.python).unlink()
    assert make() == installed
    assert Path(installed.python).exists()


def test_an_environment_copied_from_elsewhere_is_not_trusted(
    make: Callable[..., Installed], state: StateDirectory
) -> None:
    root = Path(make().root)
    shutil.copytree(root, root.with_name("copy"), symlinks=True)
    assert [one.root for one in list_environments(state)] == [str(root)]


def test_a_removed_environment_is_gone_and_a_foreign_folder_stays(
    make: Callable[..., Installed], state: StateDirectory, tmp_path: Path
) -> None:
    installed = make()
    remove(installed, state)
    assert list_environments(state) == () and folders(state) == []
    foreign = tmp_path / "precious"
    foreign.mkdir()
    with pytest.raises(EnvironmentFailed, match="not one of our environments"):
        remove(msgspec.structs.replace(installed, root=str(foreign)), state)
    assert foreign.exists()


def test_two_that_want_the_same_environment_get_one(make: Callable[..., Installed], state: StateDirectory) -> None:
    results: list[Installed] = []
    threads = [threading.Thread(target=lambda: results.append(make())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(set(map(repr, results))) == 1
    assert len(folders(state)) == 1


def test_a_uv_that_dies_is_an_error_and_leaves_nothing(
    make: Callable[..., Installed], state: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "dying"
    script.write_text(f'#!/bin/sh\nif [ "$1 $2" = "pip install" ]; then kill -9 $$; fi\nexec {uv_command()[0]} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setattr(packages, "uv_command", lambda: [str(script)])
    with pytest.raises(EnvironmentFailed, match="package client failed"):
        make()
    assert folders(state) == []


def test_an_interrupted_installation_leaves_nothing(
    state: StateDirectory, index: PackageIndex, environ: dict[str, str], wheels: Path
) -> None:
    def interrupt(progress: InstallProgress) -> None:
        if progress.stage == "import":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(locked(TINY, wheels), "tiny", state, index, interrupt, environ=environ)
    assert folders(state) == []


def test_progress_only_rises(make: Callable[..., Installed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "_POLL_S", 0.001)
    stages: list[InstallProgress] = []
    make(needs("tinyengine==1.0", installed_bytes=1000), stages)
    fractions = [one.fraction for one in stages if one.fraction is not None and one.stage == "packages"]
    assert len(fractions) > 1 and fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (f"error: failed to copy\n  Caused by: {os.strerror(errno.ENOSPC)} (os error 28)", "disk is full"),
        (
            "error: Failed to fetch: `https://x/simple/`\n  Caused by: invalid peer certificate: UnknownIssuer",
            "trusted",
        ),
        ("  x No solution found\n  ╰─▶ Because there is no version of openvino==1 and you require it", "version"),
        ("  x Failed to download `a`\n  ├─▶ Failed to fetch: `http://x`\n  ╰─▶ dns error: no such host", "be reached"),
        ("error: HTTP status client error (401 Unauthorized) for url (https://x/)", "refuses access"),
        ("Because only the following versions exist and a==1 has no wheels with a matching Python ABI tag", "no wheel"),
        ("something new", "package client failed"),
        ("", "package client failed"),
    ],
)
def test_what_uv_says_becomes_a_cause(output: str, message: str) -> None:
    error = explain(output)
    assert message in error.message
    assert error.hint
