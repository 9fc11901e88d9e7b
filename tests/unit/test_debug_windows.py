"""Debug windows as control keeps them: noted before they open, outliving a reload, their files removed in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelyard.clock import Clock
from modelyard.control.audit_log import AuditLog
from modelyard.control.debugging import KEPT_S, DebugWindows
from modelyard.control.publisher import Publisher
from modelyard.errors import ModelyardError
from modelyard.observe.audit import entries
from modelyard.records.base import decode
from modelyard.records.topology import Topology
from modelyard.state import StateDirectory, open_state
from yards import fake_wanted

NOW = 1_700_000_000.0


class Setting:
    """Control's part of it, at a time that the test sets."""

    def __init__(self, state: StateDirectory) -> None:
        self.state, self.now = state, NOW
        clock = Clock(wall=lambda: self.now)
        self.publisher = Publisher(state)
        self.publisher.want(fake_wanted())
        self.windows = DebugWindows(state, self.publisher, AuditLog(state, clock), clock)

    def published(self) -> float:
        return decode(self.state.topology.read_bytes(), Topology).deployments[0].debug_until


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(open_state(tmp_path))


def test_a_window_is_noted_with_its_reason_and_published(setting: Setting) -> None:
    assert setting.windows.open("small", 600.0, "garbled answers", "admin (ann)") == NOW + 600
    assert setting.published() == setting.windows.until("small") == NOW + 600
    (entry,) = entries(setting.state.audit)
    assert (entry.action, entry.subject, entry.by) == ("debug.open", "small", "admin (ann)")
    assert entry.details == {"reason": "garbled answers", "until": f"{NOW + 600:.0f}"}


def test_what_cannot_be_noted_does_not_open(setting: Setting) -> None:
    setting.state.audit.mkdir()
    with pytest.raises(ModelyardError, match="audit log"):
        setting.windows.open("small", 600.0, "why", "admin")
    assert setting.published() == 0.0


def test_a_window_outlives_a_reload_and_the_next_control_and_ends_by_its_time(setting: Setting) -> None:
    setting.windows.open("small", 600.0, "why", "admin")
    setting.publisher.want(fake_wanted())
    later = Setting(setting.state)
    assert later.published() == NOW + 600 and later.windows.until("small") == NOW + 600
    later.now = NOW + 600
    assert later.windows.until("small") == 0.0


def test_closing_ends_it_at_once(setting: Setting) -> None:
    setting.windows.open("small", 600.0, "why", "admin")
    setting.windows.close("small", "admin")
    assert setting.published() == setting.windows.until("small") == 0.0
    assert [one.action for one in entries(setting.state.audit)] == ["debug.open", "debug.close"]


def test_files_are_removed_a_day_after_their_last_request(setting: Setting) -> None:
    setting.windows.sweep()
    setting.state.debug.mkdir()
    for name, written in (("old", NOW - KEPT_S - 1), ("young", NOW - KEPT_S + 1)):
        path = setting.state.debug / f"{name}.ndjson"
        path.write_text("{}")
        os.utime(path, (written, written))
    setting.windows.sweep()
    assert [path.name for path in setting.state.debug.iterdir()] == ["young.ndjson"]
    assert [(one.action, one.subject) for one in entries(setting.state.audit)] == [("debug.removed", "old.ndjson")]
