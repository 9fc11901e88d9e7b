"""docs/quickstart.md is a recorded session.

Every command of it is run here, at a terminal, from a clean state, with the real engine, and what it shows is compared
with what the page says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.engines.contract import Installed
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory
from needs import missing, needs_program
from walkthrough import File, Terminal, Typed, differs, steps
from yards import processes_of

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "quickstart.md"
PORT = 8000


@pytest.fixture
def home(tmp_path: Path, openvino: Installed, smollm2: Artifact) -> Iterator[Path]:
    """A person's home with nothing in it but a checkout. `openvino` and `smollm2` only tell whether the index answers:
    the page fetches its own."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("yard", "examples"):
        (home / name).symlink_to(ROOT / name)
    yield home
    state = StateDirectory(home / ".local" / "state" / "modelyard")
    subprocess.run([home / "yard", "down"], env=environ(home), capture_output=True)
    assert processes_of(state) == {}
    shutil.rmtree(state.sockets, ignore_errors=True)


def environ(home: Path) -> dict[str, str]:
    """A person's variables: no state directory of ours is named, the package client's own settings and cache stay."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODELYARD_", "XDG_"))}
    cache = os.environ.get("UV_CACHE_DIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uv"
    )
    pip = next((path for path in pip_files() if path.is_file()), None)
    return {**kept, "HOME": str(home), "UV_CACHE_DIR": cache, **({"PIP_CONFIG_FILE": str(pip)} if pip else {})}


def pip_files() -> list[Path]:
    """The user's own settings of pip, which another HOME would hide."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return [
        Path(os.environ.get("PIP_CONFIG_FILE") or "/nonexistent"),
        config / "pip/pip.conf",
        Path("~/.pip/pip.conf").expanduser(),
    ]


def test_the_first_ten_minutes_are_as_they_are_written(home: Path) -> None:
    needs_program("curl")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            missing(f"port {PORT}, which the page uses, is taken")
    terminal = Terminal(home, environ(home))
    wrong: list[str] = []
    for step in steps(PAGE.read_text()):
        if isinstance(step, File):
            (home / step.name).write_text(step.text)
            continue
        wrong += faults(step, *terminal.run(step))
    assert wrong == []


def faults(step: Typed, code: int, shown: list[str]) -> list[str]:
    """What is not as the page says, with all that the terminal showed."""
    where = f"{PAGE.name}:{step.line}: $ {step.command}"
    seen = "\n".join(shown)
    found = [f"{where}\nended with {code}\n{seen}"] if (code != 0) != step.fails else []
    difference = differs(step.shown, shown)
    return found + ([f"{where}\n{difference}\n{seen}"] if difference else [])
