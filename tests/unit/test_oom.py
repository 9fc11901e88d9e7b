"""The kernel's count of processes that it killed for want of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.node import oom
from modelyard.node.oom import OomCounter


def test_a_counter_rises_once_per_rise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\n")
    monkeypatch.setattr(oom, "_candidates", lambda: [str(tmp_path / "absent"), str(events)])
    counter = OomCounter()
    assert not counter.rose()
    events.write_text("low 0\noom 4\noom_kill 3\n")
    assert counter.rose()
    assert not counter.rose()


def test_a_counter_that_cannot_be_read_never_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "_candidates", lambda: [str(tmp_path / "absent")])
    assert not OomCounter().rose()


def test_this_machine_has_a_counter_that_can_be_read() -> None:
    assert any(oom._read(path) is not None for path in oom._candidates())
