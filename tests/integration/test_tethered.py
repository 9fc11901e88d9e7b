"""A tethered command: it does what it would do alone, and never outlives whoever holds the tether."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import modelyard

TETHERED = Path(modelyard.__file__).parent / "programs" / "tethered.py"
READY_AND_STAY = "import signal; print('ready', flush=True); signal.pause()"


def tethered(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(TETHERED), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    )


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_commands(code: int) -> None:
    with tethered(sys.executable, "-c", f"raise SystemExit({code})") as child:
        assert child.wait(20) == code


def test_a_command_ended_by_a_signal_is_told_as_shells_tell_it() -> None:
    with tethered(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)") as child:
        assert child.wait(20) == 128 + signal.SIGKILL


@pytest.mark.parametrize("way", ["release", "terminate"])
def test_letting_go_ends_the_command(way: str) -> None:
    with tethered(sys.executable, "-c", READY_AND_STAY) as child:
        assert child.stdout
        assert child.stdin
        assert child.stdout.readline() == b"ready\n"
        if way == "release":
            child.stdin.close()
        else:
            child.terminate()
        assert child.wait(20) == 128 + signal.SIGKILL
        assert child.stdout.read() == b"", "the command still holds its standard output"
