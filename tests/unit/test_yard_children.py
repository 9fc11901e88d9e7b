"""When yard starts a child again: at once, later, and never so that yard itself ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator

import pytest

from modelyard.yard.children import LOOK_AT_MOST_S, SILENT_AFTER_S, STEADY_AFTER_S, Child

CAP_S = 1.0


@pytest.fixture
def child() -> Generator[Child]:
    """Ends at once, each time that it is started."""
    with tempfile.TemporaryFile() as log:
        child = Child("gateway", [sys.executable, "-I", "-S", "-c", ""], (), log, {}, CAP_S)
        yield child
        if child.process is not None:
            child.process.wait()


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def ended(child: Child) -> None:
    assert child.process is not None
    child.process.wait()


def latest() -> float:
    """The longest delay that full jitter can draw."""
    return 1.0


def test_the_first_end_is_followed_by_a_start_at_once(child: Child) -> None:
    said = Said()
    child.look(0.0, latest, said)
    first = child.process
    ended(child)
    child.look(0.1, latest, said)
    assert child.process is not None and child.process is not first
    assert said == ["gateway ended (exit 0); starts again in 0.0 s"]


def test_however_often_it_ends_the_next_start_is_within_the_cap(child: Child) -> None:
    now, said = 0.0, Said()
    child.look(now, latest, said)
    for _ in range(8):
        ended(child)
        child.look(now, latest, said)
        assert child.start_again_at - now <= CAP_S
        now = child.start_again_at
        child.look(now, latest, said)
    assert said[-1] == f"gateway ended (exit 0); starts again in {CAP_S} s"


def test_a_child_in_back_off_is_not_started_early(child: Child) -> None:
    said = Said()
    for _ in range(3):
        child.look(0.0, latest, said)
        if child.process is not None:
            ended(child)
    assert child.start_again_at > 0.0
    child.look(child.start_again_at - 0.01, latest, said)
    assert child.process is None
    child.look(child.start_again_at, latest, said)
    assert child.process is not None


def test_one_that_lived_long_is_started_at_once_again(child: Child) -> None:
    now, said = 0.0, Said()
    for _ in range(4):
        child.look(now, latest, said)
        ended(child)
        now += STEADY_AFTER_S + 1.0
    assert {text.rpartition(" in ")[2] for text in said} == {"0.0 s"}


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), subprocess.SubprocessError("no")])
def test_a_start_that_fails_is_tried_again_and_yard_lives(
    child: Child, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    said = Said()
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", fail)
        child.look(0.0, latest, said)
    assert child.process is None and len(said) == 1 and "cannot be started" in said[0]
    child.look(child.start_again_at, latest, said)
    assert child.process is not None


# One that tells that it serves.


@pytest.fixture
def serving() -> Generator[Child]:
    """Says once that it serves, and sleeps."""
    program = "import os, signal, sys\nos.write(int(sys.argv[-1]), b'.')\nwhile True: signal.pause()\n"
    with tempfile.TemporaryFile() as log:
        child = Child("gateway", [sys.executable, "-I", "-S", "-c", program], (), log, {}, CAP_S, tells_ready=True)
        until_ready(child, 0.0)
        yield child
        if child.process is not None:
            child.process.kill()
            child.process.wait()


def until_ready(child: Child, now: float) -> None:
    deadline = time.monotonic() + 20
    while not child.is_ready:
        assert time.monotonic() < deadline
        child.look(now, latest, Said())
        time.sleep(0.005)


def test_one_that_says_nothing_more_is_killed_and_started_again(serving: Child) -> None:
    silent, said, now = serving.process, Said(), 0.0
    while not said:
        assert now <= SILENT_AFTER_S + LOOK_AT_MOST_S
        assert serving.process is silent
        now += 0.5
        serving.look(now, latest, said)
    assert now > SILENT_AFTER_S
    assert said == ["gateway has given no sign of life for 10 s; it is killed"]
    ended(serving)
    serving.look(now, latest, said)
    assert serving.process is not silent and not serving.is_ready
    until_ready(serving, now)


def test_a_pause_of_our_own_is_no_silence_of_the_childs(serving: Child) -> None:
    said = Said()
    serving.look(1000.0, latest, said)
    serving.look(2000.0, latest, said)
    assert not said and serving.process is not None and serving.process.poll() is None


def test_who_gives_signs_of_life_lives(serving: Child) -> None:
    said = Said()
    told, serving.ready_fd = serving.ready_fd, -1
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    serving.ready_fd = reading
    for second in range(20):
        if second % 2:
            os.write(writing, b".")
        serving.look(float(second), latest, said)
    assert not said
    for descriptor in (told, writing):
        os.close(descriptor)
