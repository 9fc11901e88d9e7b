"""`modelyard engines doctor`: every way in which an environment can be damaged is found, named, and mended."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.package_index import lock_of, serve, wheel

from modelyard.engines.contract import Installed, Requirements
from modelyard.node.diagnosis import Diagnosis, examine, repair
from modelyard.node.environments import ensure, list_environments
from modelyard.node.making import MARKER, InstallProgress
from modelyard.settings import PackageIndex
from modelyard.state import StateDirectory

PINS = ("tinyengine==1.0", "tinydata==1.0")


@pytest.fixture
def requirements(tmp_path: Path) -> Requirements:
    wheel(tmp_path / "wheels", "tinyengine", code="import os\nVALUE = 1\n")
    wheel(tmp_path / "wheels", "tinydata", payload_bytes=100_000)
    return Requirements(
        packages=PINS,
        version="1.0",
        download_bytes=1,
        installed_bytes=100_000,
        import_check="tinyengine",
        lock=lock_of(tmp_path / "wheels", *PINS),
    )


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(tmp_path), "UV_NO_CONFIG": "1", "NO_PROXY": "*"}


@pytest.fixture
def index(tmp_path: Path) -> PackageIndex:
    return PackageIndex(find_links=(str(tmp_path / "wheels"),), offline=True)


@pytest.fixture
def installed(
    requirements: Requirements, state: StateDirectory, index: PackageIndex, environ: dict[str, str]
) -> Installed:
    return ensure(requirements, "tiny", state, index, lambda _: None, environ=environ)


def site_packages(installed: Installed) -> Path:
    [folder] = Path(installed.root).glob("lib/python3*/site-packages")
    return folder


def found(diagnosis: Diagnosis) -> dict[str, str]:
    """Question -> answer, of those that are answered by no."""
    return {one.question: one.answer for one in diagnosis.findings if not one.ok}


def look(installed: Installed, requirements: Requirements) -> Diagnosis:
    return examine(installed, requirements, lambda _: None)


def test_a_whole_environment_is_found_whole(installed: Installed, requirements: Requirements) -> None:
    told: list[InstallProgress] = []
    diagnosis = examine(installed, requirements, told.append)
    assert diagnosis.whole
    assert [one.question for one in diagnosis.findings] == ["interpreter", "versions", "files", "import"]
    fractions = [one.fraction for one in told if one.fraction is not None]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def remove_file(installed: Installed) -> None:
    (site_packages(installed) / "tinydata_data.bin").unlink()


def flip_a_bit(installed: Installed) -> None:
    file = site_packages(installed) / "tinydata_data.bin"
    data = bytearray(file.read_bytes())
    data[50_000] ^= 1
    file.write_bytes(data)


def break_the_module(installed: Installed) -> None:
    (site_packages(installed) / "tinyengine.py").write_text("raise ImportError('broken by hand')\n")


def another_version(installed: Installed) -> None:
    folder = site_packages(installed)
    (folder / "tinydata-1.0.dist-info").rename(folder / "tinydata-2.0.dist-info")


def a_stranger(installed: Installed) -> None:
    folder = site_packages(installed)
    shutil.copytree(folder / "tinydata-1.0.dist-info", folder / "stranger-1.0.dist-info")


def rewrite_the_record(installed: Installed) -> None:
    record = site_packages(installed) / "tinydata-1.0.dist-info" / "RECORD"
    lines = [line for line in record.read_text().splitlines() if "data.bin" not in line]
    record.write_text("\n".join(lines) + "\n")


def no_interpreter(installed: Installed) -> None:
    Path(installed.python).unlink()


def an_interpreter_that_does_not_run(installed: Installed) -> None:
    Path(installed.python).unlink()
    Path(installed.python).write_text("#!/bin/sh\necho no such library >&2; exit 127\n")
    Path(installed.python).chmod(0o700)


DAMAGES: dict[Callable[[Installed], None], dict[str, str]] = {
    remove_file: {"files": "tinydata_data.bin (missing)"},
    flip_a_bit: {"files": "tinydata_data.bin (changed)"},
    break_the_module: {"files": "tinyengine.py (changed)", "import": "broken by hand"},
    another_version: {"versions": "tinydata==1.0 missing; tinydata==2.0 not from the lock"},
    a_stranger: {"versions": "stranger==1.0 not from the lock"},
    rewrite_the_record: {"files": "RECORD (changed)"},
    no_interpreter: {"interpreter": "is gone"},
    an_interpreter_that_does_not_run: {"interpreter": "no such library"},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_mended(
    damage: Callable[[Installed], None],
    installed: Installed,
    requirements: Requirements,
    state: StateDirectory,
    index: PackageIndex,
    environ: dict[str, str],
) -> None:
    damage(installed)
    diagnosis = look(installed, requirements)
    assert not diagnosis.whole
    answers = found(diagnosis)
    for question, words in DAMAGES[damage].items():
        assert words in answers[question], answers
    made = repair(diagnosis, requirements, state, index, lambda _: None, environ=environ)
    assert look(made, requirements).whole
    assert list_environments(state) == (made,) == (installed,)


def test_repair_fetches_only_what_was_damaged(
    installed: Installed,
    requirements: Requirements,
    state: StateDirectory,
    environ: dict[str, str],
    tmp_path: Path,
) -> None:
    with serve(tmp_path / "wheels") as counted:
        index = PackageIndex(index_url=counted.url)
        (Path(installed.root) / MARKER).unlink()
        made = ensure(requirements, "tiny", state, index, lambda _: None, environ=environ)
        flip_a_bit(made)
        before = counted.asked.copy()
        repair(look(made, requirements), requirements, state, index, lambda _: None, environ=environ)
        fetched = {name for name, count in (counted.asked - before).items() if name.endswith(".whl") and count}
    # Where the file system gave the environment copies, the cache is whole.
    assert fetched <= {"tinydata-1.0-py3-none-any.whl"}


def test_a_file_that_was_changed_in_the_cache_is_fetched_again(
    installed: Installed,
    requirements: Requirements,
    state: StateDirectory,
    index: PackageIndex,
    environ: dict[str, str],
) -> None:
    [cached] = state.package_cache.glob("archive-v*/*/tinydata_data.bin")
    cached.write_bytes(b"cut short by a power cut")
    (Path(installed.root) / MARKER).unlink()
    again = ensure(requirements, "tiny", state, index, lambda _: None, environ=environ)
    assert look(again, requirements).whole
