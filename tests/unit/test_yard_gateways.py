"""How yard replaces the gateway's processes: the next ones first, and the old ones only when those serve."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from typing import IO

import pytest

from modelyard.yard.children import Child
from modelyard.yard.gateways import DRAIN_WITHIN_S, READY_WITHIN_S, GatewayProcesses

# Says that it serves; ends when told to step aside.
SERVES = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))\n"
    "os.write(int(sys.argv[-1]), b'.')\n"
    "while True: signal.pause()\n"
)
STAYS = SERVES.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
SILENT = "import signal\nwhile True: signal.pause()\n"
ENDS = ""


class Scene:
    """`program` is what the next start runs."""

    def __init__(self, count: int, log: IO[bytes]) -> None:
        self.program = SERVES
        self.said: list[str] = []
        self.log = log
        self.now = 100.0
        self.gateways = GatewayProcesses(count, self.make, lambda: 0.0, self.said.append)

    def make(self, number: int) -> Child:
        argv = [sys.executable, "-I", "-S", "-c", self.program]
        return Child(f"gateway {number}", argv, (), self.log, {}, 1.0, tells_ready=True)

    def until(self, condition: Callable[[], bool]) -> None:
        """Look as yard does until it holds; its clock stands still unless the test moves it."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.gateways.seen()
            self.gateways.look(self.now)
            time.sleep(0.005)

    @property
    def pids(self) -> list[int]:
        return [one.pid for one in self.gateways.seen().serving]

    def all_ready(self) -> bool:
        seen = self.gateways.seen()
        return len(seen.serving) == seen.workers and all(one.is_ready for one in seen.serving)

    def ended_reloads(self) -> int:
        return self.gateways.seen().reloads


@pytest.fixture(params=[1, 3])
def scene(request: pytest.FixtureRequest) -> Generator[Scene]:
    with tempfile.TemporaryFile() as log:
        scene = Scene(request.param, log)
        scene.until(scene.all_ready)
        yield scene
        for child in scene.gateways.stop():
            child.close()
            if child.process is not None:
                child.process.kill()
                child.process.wait()


def test_the_next_ones_serve_before_the_old_ones_step_aside(scene: Scene) -> None:
    old = scene.pids
    scene.gateways.reload(scene.now)
    scene.until(lambda: scene.ended_reloads() == 1)
    seen = scene.gateways.seen()
    assert scene.all_ready() and set(old).isdisjoint(scene.pids)
    assert seen.failure == "" and set(seen.leaving) <= set(old)
    scene.until(lambda: not scene.gateways.seen().leaving)
    assert not any("ended" in text for text in scene.said), "an end that was asked for is no news"


@pytest.mark.parametrize("program", [ENDS, SILENT], ids=["ends", "is silent"])
def test_while_the_next_ones_do_not_serve_the_old_ones_do(scene: Scene, program: str) -> None:
    old = scene.pids
    scene.program = program
    scene.gateways.reload(scene.now)
    scene.gateways.look(scene.now)
    if program == SILENT:
        scene.now += READY_WITHIN_S + 1
    scene.until(lambda: scene.ended_reloads() == 1)
    assert scene.pids == old and scene.all_ready()
    assert scene.gateways.seen().failure
    scene.until(lambda: not scene.gateways.seen().leaving)
    assert scene.pids == old

    scene.program = SERVES
    scene.gateways.reload(scene.now)
    scene.until(lambda: scene.ended_reloads() == 2)
    assert scene.gateways.seen().failure == "" and set(old).isdisjoint(scene.pids)


def test_one_that_does_not_end_is_killed_after_its_grace(scene: Scene) -> None:
    scene.program = STAYS
    scene.gateways.reload(scene.now)
    scene.until(lambda: scene.ended_reloads() == 1)
    scene.until(lambda: not scene.gateways.seen().leaving)
    staying = scene.pids
    scene.gateways.reload(scene.now)
    scene.until(lambda: scene.ended_reloads() == 2)
    scene.gateways.look(scene.now)
    assert sorted(scene.gateways.seen().leaving) == sorted(staying)
    scene.now += DRAIN_WITHIN_S + 1
    scene.until(lambda: not scene.gateways.seen().leaving)


def test_one_that_dies_during_a_reload_is_started_again(scene: Scene) -> None:
    scene.program = SILENT
    scene.gateways.reload(scene.now)
    scene.gateways.look(scene.now)
    killed = scene.gateways.serving[0].process
    assert killed is not None
    killed.kill()
    killed.wait()
    scene.until(lambda: scene.gateways.serving[0].process not in (None, killed))
    assert any("gateway 0 ended (signal 9)" in text for text in scene.said)


def test_reloads_leave_no_descriptor_behind(scene: Scene) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        scene.gateways.reload(scene.now)
        scene.until(lambda number=number: scene.ended_reloads() == number + 1)
        scene.until(lambda: not scene.gateways.seen().leaving)
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_asks_during_a_reload_gets_another_one_after_it(scene: Scene) -> None:
    scene.gateways.reload(scene.now)
    for _ in range(3):
        scene.gateways.reload(scene.now)
    scene.until(lambda: scene.ended_reloads() == 2)
    scene.until(lambda: not scene.gateways.seen().leaving)
    assert scene.ended_reloads() == 2
