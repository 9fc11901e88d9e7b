"""`./yard`, run as a child on a copy of the front door with a Python that only pretends to fetch packages.

The real thing, with a real index, is how these tests themselves were started: `./yard test`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from needs import missing

SCRIPT = Path(__file__).parents[2] / "yard"
SYSTEM_PATH = "/usr/bin:/bin"

# A stand-in for `python3`: real for `-c`, pretending for `-m venv`.
PYTHON = """#!/bin/sh
case $1 in
-c) case $2 in *ensurepip*) [ ! -r {folder}/no-ensurepip ] || set -- -c "import ensurepip_is_elsewhere" ;; esac
    exec {real} "$@" ;;
-m) mkdir -p "$4/bin" && cp {folder}/venv-python "$4/bin/python" ;;
esac
"""

# A stand-in for `.venv/bin/python`: notes what it was asked, fails or waits where a file says so.
VENV_PYTHON = """#!/bin/sh
echo "$*" >>{folder}/calls
[ ! -r {folder}/pip-fails ] || {{ cat {folder}/pip-fails; exit 1; }}
case $* in
*requirements*) [ ! -p {folder}/gate ] || {{ : >{folder}/waiting; read -r _ <{folder}/gate; }} ;;
*--editable*) cp {folder}/modelyard "$(dirname -- "$0")/modelyard" ;;
"-m pytest"*) echo "pytest in $PWD" ;;
esac
"""

MODELYARD = """#!/bin/sh
echo "cwd=$PWD"
for argument in "$@"; do echo "[$argument]"; done
exit "${MODELYARD_EXIT:-0}"
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@dataclass
class Checkout:
    """A copy of the front door, and the pretended Python beside it."""

    root: Path
    fake: Path
    environ: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def trusted(self) -> bool:
        return any(self.venv.glob("complete-*"))

    def start(self, *arguments: str, cwd: Path | None = None, user: int | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(self.root / "yard"), *arguments],
            cwd=cwd or self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            user=user,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Nothing that a failed test started lives on: each process has a group of its own."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run(self, *arguments: str, cwd: Path | None = None, user: int | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, cwd=cwd, user=user)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """What was asked of the environment's Python since the last look."""
        path = self.fake / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


def make_checkout(folder: Path) -> Checkout:
    root, fake = folder / "a check out", folder / "fake"
    root.mkdir()
    shutil.copy2(SCRIPT, root / "yard")
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock", "pyproject.toml"):
        (root / name).write_text("something==1\n")
    write_program(fake / "bin" / "python3", PYTHON.format(real=sys.executable, folder=fake))
    write_program(fake / "venv-python", VENV_PYTHON.format(folder=fake))
    write_program(fake / "modelyard", MODELYARD)
    return Checkout(root, fake, {"PATH": f"{fake / 'bin'}:{SYSTEM_PATH}"})


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = make_checkout(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",), ("-h",)])
def test_help_explains_itself_without_setting_anything_up(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    code, out, err = checkout.run(*arguments)
    assert (code, err) == (0, "")
    assert "./yard up" in out and "./yard test" in out
    assert not checkout.venv.exists()


def test_the_first_call_sets_up_and_the_second_is_silent(checkout: Checkout) -> None:
    code, out, err = checkout.run("status", "--json")
    assert (code, "[status]\n[--json]" in out) == (0, True)
    assert "Setting up Modelyard (once)" in err
    first = checkout.calls()
    assert any("--require-hashes" in call and "requirements.lock" in call for call in first)
    code, out, err = checkout.run("status")
    assert (code, err, checkout.calls()) == (0, "", [])


def test_a_command_runs_where_the_caller_stands_and_gets_its_arguments_whole(
    checkout: Checkout, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    code, out, _ = checkout.run("chat", "two words", "", "*", cwd=elsewhere)
    assert code == 0
    assert out == f"cwd={elsewhere}\n[chat]\n[two words]\n[]\n[*]\n"


def test_the_exit_code_is_that_of_the_command(checkout: Checkout) -> None:
    checkout.environ["MODELYARD_EXIT"] = "7"
    assert checkout.run("up")[0] == 7


def test_it_works_through_a_symbolic_link(checkout: Checkout, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(checkout.root / "yard")
    done = subprocess.run([link, "version"], env=checkout.environ, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "[version]" in done.stdout) == (0, True)
    assert checkout.trusted


def test_test_runs_pytest_with_the_development_set_from_the_root(checkout: Checkout, tmp_path: Path) -> None:
    code, out, _ = checkout.run("test", "-k", "two words", cwd=tmp_path)
    assert (code, out) == (0, f"pytest in {checkout.root}\n")
    calls = checkout.calls()
    assert any("requirements-dev.lock" in call for call in calls)
    assert calls[-1] == "-m pytest -k two words"


def test_the_development_set_serves_ordinary_commands_too(checkout: Checkout) -> None:
    checkout.run("test")
    checkout.calls()
    assert (checkout.run("version")[2], checkout.calls()) == ("", [])


def test_development_tools_that_cannot_be_fetched_leave_the_runtime_usable(checkout: Checkout) -> None:
    checkout.run("version")
    failing = checkout.fake / "pip-fails"
    failing.write_text("ERROR: No matching distribution found for pytest")
    assert checkout.run("test")[0] == 3
    failing.unlink()
    checkout.calls()
    assert (checkout.run("version")[0], checkout.calls()) == (0, [])


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_changed_lock_is_installed_anew_from_nothing(checkout: Checkout, name: str) -> None:
    checkout.run("version")
    (checkout.venv / "left-over").touch()
    (checkout.root / name).write_text("something==2\n")
    assert "Setting up" in checkout.run("version")[2]
    assert not (checkout.venv / "left-over").exists()


def test_a_moved_checkout_is_set_up_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("version")
    checkout.root = checkout.root.rename(tmp_path / "moved")
    assert "Setting up" in checkout.run("version")[2]


def test_an_environment_made_by_somebody_else_is_left_alone(checkout: Checkout) -> None:
    checkout.venv.mkdir()
    (checkout.venv / "precious").touch()
    code, _, err = checkout.run("version")
    assert (code, "not made by ./yard" in err) == (3, True)
    assert (checkout.venv / "precious").exists()


def test_what_a_kill_at_the_worst_moment_leaves_is_cleared_away(checkout: Checkout) -> None:
    """Between making the folder and marking it, or half way through removing an old one."""
    checkout.venv.mkdir()
    old = checkout.root / ".venv.old"
    (old / "lib").mkdir(parents=True)
    assert checkout.run("version")[0] == 0
    assert not old.exists()


def test_a_python_that_is_too_old_is_named_with_what_to_install(checkout: Checkout) -> None:
    only_old_python(checkout, "3.9.2")
    code, _, err = checkout.run("version")
    assert code == 3
    assert "Python 3.11 or newer is needed; python3 is 3.9.2" in err
    assert "apt install" in err


def test_a_python_named_by_the_user_is_not_silently_replaced(checkout: Checkout, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    write_program(old, "#!/bin/sh\necho 3.8.1; exit 1\n")
    checkout.environ["MODELYARD_PYTHON"] = str(old)
    code, _, err = checkout.run("version")
    assert (code, f"{old} is 3.8.1" in err) == (3, True)


def test_no_python_at_all_is_said_in_a_sentence(checkout: Checkout) -> None:
    only_old_python(checkout, None)
    code, _, err = checkout.run("version")
    assert (code, "no Python was found in PATH" in err) == (3, True)


def only_old_python(checkout: Checkout, version: str | None) -> None:
    """A PATH with the tools of any POSIX system and no Python but an old one."""
    folder = checkout.fake / "bin"
    (folder / "python3").unlink()
    for tool in ("sh", "cat", "cksum", "dirname", "readlink"):
        (folder / tool).symlink_to(str(shutil.which(tool, path=SYSTEM_PATH)))
    if version:
        write_program(folder / "python3", f"#!/bin/sh\necho {version}; exit 1\n")
    checkout.environ["PATH"] = str(folder)


FAILURES = {
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "the disk is full",
    "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'": "no permission to write",
    "WARNING: Retrying after connection broken by 'NewConnectionError(...)'": "the package index is out of reach",
    "ERROR: No matching distribution found for aiohttp==9": "the package index is out of reach",
    "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.": "not the one that requirements.lock",
    "ERROR: something nobody foresaw": "setting up failed",
}


@pytest.mark.parametrize("said", FAILURES)
def test_a_failing_installation_is_a_sentence_and_leaves_nothing(checkout: Checkout, said: str) -> None:
    (checkout.fake / "pip-fails").write_text(said)
    code, out, err = checkout.run("up")
    assert (code, out) == (3, "")
    assert FAILURES[said] in err
    assert not checkout.venv.exists()


def test_a_python_without_its_venv_module_names_the_package_to_install(checkout: Checkout) -> None:
    (checkout.fake / "no-ensurepip").touch()
    code, _, err = checkout.run("up")
    assert (code, "apt install python3-venv" in err) == (3, True)
    assert not checkout.venv.exists()


def test_an_index_out_of_reach_is_told_from_what_the_real_pip_says(checkout: Checkout) -> None:
    write_program(checkout.fake / "bin" / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    # Port 9 (discard) is closed: refused at once.
    checkout.environ |= {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    for name in ("requirements.lock", "requirements-build.lock"):
        (checkout.root / name).write_text(f"something==1 --hash=sha256:{'0' * 64}\n")
    code, _, err = checkout.run("up")
    assert code == 3
    assert "the package index is out of reach" in err and "PIP_INDEX_URL" in err
    assert "Traceback" not in err
    assert not checkout.venv.exists()


@pytest.fixture
def strangers_checkout() -> Iterator[Checkout]:
    """A checkout that belongs to root, in a folder that everybody may enter (pytest's own is private)."""
    if os.getuid() != 0:
        missing("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield make_checkout(Path(folder))


def test_a_folder_that_may_not_be_written_is_said_in_a_sentence(strangers_checkout: Checkout) -> None:
    write_program(strangers_checkout.fake / "bin" / "python3", "#!/bin/sh\necho 3.11.0\n")
    code, _, err = strangers_checkout.run("up", user=65534)
    assert (code, "no permission to write in" in err) == (3, True)


@pytest.fixture
def gate(checkout: Checkout) -> Path:
    """While it exists, the pretended pip waits at it for a line."""
    gate = checkout.fake / "gate"
    os.mkfifo(gate)
    return gate


async def test_an_interrupted_set_up_leaves_nothing(checkout: Checkout, gate: Path, eventually) -> None:
    process = checkout.start("up")
    await eventually((checkout.fake / "waiting").exists)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert not checkout.venv.exists()


async def test_a_set_up_killed_half_way_is_not_trusted_by_the_next(checkout: Checkout, gate: Path, eventually) -> None:
    """Only the shell is killed: its pip lives on, and the next call waits for it before it starts from nothing."""
    killed = checkout.start("version")
    await eventually((checkout.fake / "waiting").exists)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=30)
    (checkout.venv / "half-made").touch()
    assert not checkout.trusted

    second = checkout.start("version")
    assert second.stderr and "waiting" in second.stderr.readline()
    release(gate)
    out, _ = second.communicate(timeout=60)
    assert (second.returncode, "[version]" in out) == (0, True)
    assert not (checkout.venv / "half-made").exists()
    killed.communicate(timeout=30)


async def test_two_calls_at_once_set_up_once(checkout: Checkout, gate: Path, eventually) -> None:
    first = checkout.start("version")
    await eventually((checkout.fake / "waiting").exists)
    second = checkout.start("version")
    assert second.stderr and "waiting" in second.stderr.readline()
    release(gate)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [err.count("Setting up") for _, err in outputs] == [1, 0]


def release(gate: Path) -> None:
    """Let the waiting one pass, and nobody wait again."""
    descriptor = os.open(gate, os.O_WRONLY)
    gate.unlink()
    os.write(descriptor, b"go\n")
    os.close(descriptor)
