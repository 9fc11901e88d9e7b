"""`modelyard engines`: what it costs before, what is there after, and no secret on the way."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.package_index import Counted, lock_of, serve, wheel

from commands import Command
from modelyard.engines.contract import Requirements
from modelyard.state import StateDirectory

PROGRAM = str(Path(__file__).parents[1] / "tiny_engine.py")
PINS = ("tinyengine==1.0", "tinydata==1.0")
CREDENTIALS = "somebody:s3cr3t-w0rd"


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    wheel(tmp_path / "wheels", "tinyengine")
    wheel(tmp_path / "wheels", "tinydata", payload_bytes=100_000)
    with serve(tmp_path / "wheels", credentials=CREDENTIALS) as index:
        yield index


@pytest.fixture
def requirements(counted: Counted) -> Requirements:
    return Requirements(
        packages=PINS,
        version="1.0",
        download_bytes=110_000,
        installed_bytes=120_000,
        import_check="tinyengine",
        lock=lock_of(counted.folder, *PINS),
    )


def known_as(requirements: Requirements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_TEST_REQUIREMENTS", msgspec.json.encode(requirements).decode())


@pytest.fixture
def command(
    state: StateDirectory,
    requirements: Requirements,
    counted: Counted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "MODELYARD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("MODELYARD_INDEX_URL", counted.url.replace("://", f"://{CREDENTIALS}@"))
    known_as(requirements, monkeypatch)
    return Command(state.root, (PROGRAM,))


def tiny(command: Command) -> dict[str, Any]:
    return next(one for one in command("engines", "list", "--json", check=True).value if one["name"] == "tiny")


def test_the_price_is_told_first_and_the_result_last(command: Command, state: StateDirectory) -> None:
    assert tiny(command)["installed"] is None
    lines = command("engines", "install", "tiny", check=True).out.splitlines()
    assert lines[0].startswith("tiny 1.0 (cpu): about 107 KiB to download, 117 KiB installed; ")
    assert lines[0].endswith(f" free in {state.environments}")
    assert lines[-1].startswith(f"✓ 1/7 environment   tiny 1.0 (cpu) in {state.environments}")
    [build] = tiny(command)["builds"]
    assert build["build"] == "cpu" and build["installed"]["engine"] == "tiny" and build["disk_bytes"] > 100_000
    again = command("engines", "install", "tiny", check=True).out
    assert "to download" not in again


async def test_interrupted_it_says_that_nothing_is_lost(
    command: Command, counted: Counted, state: StateDirectory, eventually: Callable[..., Awaitable[object]]
) -> None:
    counted.held.add("tinydata-1.0-py3-none-any.whl")
    child = command.start("engines", "install", "tiny")
    await eventually(counted.half_way.is_set)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err == "error: interrupted\n"
    assert "✗ 1/7 environment   interrupted" in out
    assert "What was fetched whole is kept: the same command goes on from there." in out
    assert [path for path in state.environments.iterdir() if path.is_dir()] == []


def test_the_list_shows_builds_and_sizes(command: Command) -> None:
    rows = command("engines", "list", check=True).out.splitlines()
    assert " ".join(rows[0].split()) == "engine build version installed download takes proved here conformance serves"
    [row] = [row for row in rows if row.startswith("tiny")]
    assert row.split() == ["tiny", "cpu", "1.0", "no", "107", "KiB", "117", "KiB", "no", "fake"]


def test_a_build_that_is_not_there_is_refused_with_those_that_are(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = command("engines", "install", "tiny", "--build", "cuda")
    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: tiny has no build for cuda")
    assert "builds of tiny: cpu" in ended.err
    monkeypatch.setenv("MODELYARD_BUILD", "rocm")
    assert command("engines", "install", "tiny").code == 2
    assert command("engines", "install", "tiny", "--build", "cpu").code == 0


def test_the_doctor_finds_nothing_then_something_and_mends_it(command: Command) -> None:
    missing = command("engines", "doctor", "tiny")
    assert missing.code == 3 and "tiny is not installed here" in missing.err
    assert command("engines", "doctor", check=True).out == "no engine is installed here\n"
    installed = command("engines", "install", "tiny", "--json", check=True).value
    well = command("engines", "doctor", "tiny", check=True).out.splitlines()
    assert well[0] == f"tiny 1.0 (cpu) in {installed['root']}"
    assert [line.split()[:2] for line in well[1:]] == [
        ["✓", f"{question}:"] for question in ("interpreter", "versions", "files", "import")
    ]
    [file] = Path(installed["root"]).glob("lib/python3*/site-packages/tinydata_data.bin")
    file.unlink()
    ill = command("engines", "doctor")
    assert ill.code == 3
    assert "✗ files: " in ill.out and "tinydata_data.bin (missing)" in ill.out
    assert "error: not as it was installed: tiny" in ill.err and "modelyard engines doctor tiny --repair" in ill.err
    mended = command("engines", "doctor", "tiny", "--repair", check=True).out
    assert "made anew:" in mended and mended.rstrip().endswith("tinyengine can be imported")
    [told] = command("engines", "doctor", "--json", check=True).value
    assert all(one["ok"] for one in told["findings"])


def test_removing_gives_back_what_it_took(command: Command, state: StateDirectory) -> None:
    installed = command("engines", "install", "tiny", "--json", check=True).value
    assert command("engines", "remove", "tiny", "--json", check=True).value == [installed["root"]]
    assert [path for path in state.environments.iterdir() if path.is_dir()] == []
    assert not list(state.package_cache.glob("archive-v*/*/*"))
    assert command("engines", "remove", "tiny", check=True).out == "0 environments removed\n"


@pytest.mark.parametrize("break_it", ["away", "refused", "changed"])
def test_no_credential_is_ever_printed(
    break_it: str, command: Command, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    match break_it:
        case "away":
            monkeypatch.setenv("MODELYARD_INDEX_URL", f"http://{CREDENTIALS}@127.0.0.1:9/simple")
        case "refused":
            counted.credentials = "somebody:else"
        case _:
            wheel(counted.folder, "tinyengine", code="# not the locked one")
    ended = command("engines", "install", "tiny")
    assert ended.code == 3
    for secret in (CREDENTIALS, "s3cr3t-w0rd"):
        assert secret not in ended.out + ended.err


def test_offline_says_what_is_missing_and_uses_what_is_there(
    command: Command, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.setenv("MODELYARD_OFFLINE", "1")
    ended = command("engines", "install", "tiny")
    assert ended.code == 3 and "packages are missing and the settings say offline" in ended.err
    assert "MODELYARD_FIND_LINKS" in ended.err
    monkeypatch.setenv("MODELYARD_FIND_LINKS", str(counted.folder))
    command("engines", "install", "tiny", check=True)
    assert not counted.asked


def on_a_terminal(command: Command, *arguments: str, answer: bytes) -> tuple[int, str]:
    """The exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *command.program, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**command.environ, "TERM": "dumb"},
    ) as child:
        os.close(theirs)
        os.write(ours, answer)
        shown = b""
        # Linux's way to say that nobody has the other end open is an error.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown += piece
    os.close(ours)
    return child.returncode, shown.decode()


def test_a_large_one_is_asked_for_where_somebody_can_answer(
    command: Command, requirements: Requirements, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_as(msgspec.structs.replace(requirements, download_bytes=2_000_000_000), monkeypatch)
    code, shown = on_a_terminal(command, "engines", "install", "tiny", answer=b"n\n")
    assert code == 0 and "about 1.9 GiB to download" in shown and "Install it? [Y/n]" in shown
    assert "nothing was changed" in shown and tiny(command)["installed"] is None
    code, shown = on_a_terminal(command, "engines", "install", "tiny", "--yes", answer=b"")
    assert code == 0 and "Install it?" not in shown
    command("engines", "remove", "tiny", check=True)
    command("engines", "install", "tiny", check=True)
    assert tiny(command)["installed"], "without a terminal nobody is asked"


def test_a_small_one_is_not_asked_for(command: Command) -> None:
    code, shown = on_a_terminal(command, "engines", "install", "tiny", answer=b"")
    assert code == 0 and "Install it?" not in shown


ROCM = ("engines", "install", "tiny", "--build", "rocm", "--yes")


@pytest.fixture
def rocm(command: Command, requirements: Requirements, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has one more build, whose wheels are on no index that locks are made from."""
    build = msgspec.structs.replace(requirements, build="rocm", lock="", local_builds=("tinyengine",), pinned_here=True)
    monkeypatch.setenv("MODELYARD_TEST_GPU_BUILDS", msgspec.json.encode([build]).decode())


@pytest.mark.usefixtures("rocm")
def test_a_build_without_a_lock_is_pinned_from_the_operators_index_first(
    command: Command, counted: Counted, state: StateDirectory
) -> None:
    unpinned = command(*ROCM)
    assert unpinned.code == 3 and "modelyard engines pin tiny --build rocm" in unpinned.err
    foreign = command("engines", "pin", "tiny", "--build", "rocm")
    assert foreign.code == 3 and "the index has tinyengine 1.0, and that is no build for rocm" in foreign.err
    wheel(counted.folder, "tinyengine", "1.0+rocm721")
    pinned = command("engines", "pin", "tiny", "--build", "rocm", check=True).out
    assert pinned.startswith("2 packages of tiny (rocm) are pinned in\n")
    assert "tinyengine==1.0+rocm721 \\\n    --hash=sha256:" in (state.locks / "tiny-rocm.txt").read_text()
    assert CREDENTIALS not in (state.locks / "tiny-rocm.txt").read_text()
    assert command(*ROCM, "--json", check=True).value["build"] == "rocm"
    shown = next(one for one in command("engines", "list", "--json", check=True).value if one["name"] == "tiny")
    assert [one.get("installed") is not None for one in shown["builds"]] == [False, True]
    assert command("engines", "doctor", "tiny").code == 0


@pytest.mark.usefixtures("rocm")
def test_what_was_pinned_is_all_that_is_installed(command: Command, counted: Counted, state: StateDirectory) -> None:
    wheel(counted.folder, "tinyengine", "1.0+rocm721")
    command("engines", "pin", "tiny", "--build", "rocm", check=True)
    wheel(counted.folder, "tinyengine", "1.0+rocm721", code="import os  # somebody else's\n")
    refused = command(*ROCM)
    assert refused.code == 3 and "is not the one that the lock names" in refused.err
    assert [path for path in state.environments.iterdir() if path.is_dir()] == []


def test_a_build_that_comes_with_a_lock_is_not_pinned_anew(command: Command) -> None:
    ended = command("engines", "pin", "tiny")
    assert ended.code == 2 and "tiny for cpu comes with a lock" in ended.err
