"""The audit log: appended, chained, and any change to it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.clock import Clock
from modelyard.control.audit_log import AuditLog
from modelyard.errors import ModelyardError
from modelyard.observe.audit import entries, verify_chain
from modelyard.state import StateDirectory


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


def log(state: StateDirectory) -> AuditLog:
    return AuditLog(state, Clock(wall=lambda: 1000.0))


def three(state: StateDirectory) -> Path:
    writer = log(state)
    for name in ("first", "second", "third"):
        writer.note("admin", "key-created", name, parent="none")
    return state.audit


def test_entries_are_numbered_chained_and_only_the_owner_reads_them(state: StateDirectory) -> None:
    path = three(state)
    found = entries(path)
    assert [(one.sequence, one.subject, one.at) for one in found] == [
        (1, "first", 1000.0),
        (2, "second", 1000.0),
        (3, "third", 1000.0),
    ]
    assert found[0].previous == "" and len({one.previous for one in found}) == 3
    chain = verify_chain(path)
    assert (chain.entries, chain.broken_at) == (3, None) and len(chain.last_sha256) == 64
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_log_at_all_is_an_empty_chain(state: StateDirectory) -> None:
    assert verify_chain(state.audit).entries == 0 and entries(state.audit) == ()


def test_the_next_writer_goes_on_where_the_last_one_ended(state: StateDirectory) -> None:
    path = three(state)
    log(state).note("admin", "key-revoked", "fourth")
    assert verify_chain(path).entries == 4 and verify_chain(path).broken_at is None


def test_a_line_that_was_never_finished_is_cut_off(state: StateDirectory) -> None:
    path = three(state)
    with path.open("ab") as file:
        file.write(b'{"schema":"audit/v1","seq')
    log(state).note("admin", "key-revoked", "fourth")
    assert verify_chain(path).entries == 4 and verify_chain(path).broken_at is None


@pytest.mark.parametrize(
    ("change", "broken_at"),
    [
        (lambda lines: [lines[0].replace(b"first", b"other"), *lines[1:]], 2),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [lines[0], b"{}", *lines[1:]], 2),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
    ],
)
def test_whatever_is_changed_before_the_last_entry_breaks_the_chain(
    state: StateDirectory, change: object, broken_at: int
) -> None:
    path = three(state)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(change(lines)) + b"\n")  # type: ignore[operator]
    chain = verify_chain(path)
    assert chain.broken_at == broken_at and chain.reason


def test_what_cannot_be_written_is_not_claimed(state: StateDirectory) -> None:
    writer = log(state)
    state.audit.mkdir()
    with pytest.raises(ModelyardError, match="audit log"):
        writer.note("admin", "key-created", "first")
    state.audit.rmdir()
    writer.note("admin", "key-created", "first")
    assert verify_chain(state.audit).broken_at is None
