"""The writer of the key log: what was acknowledged is on disk, and nothing else ever counts."""

from __future__ import annotations

import pytest

from modelyard.clock import Clock
from modelyard.control.key_log import Bounds, KeyWriter
from modelyard.errors import UsageError
from modelyard.gateway.keyring import KeyLog, Keyring
from modelyard.records.keys import Scopes
from modelyard.state import StateDirectory

NOW = 1_000.0
CLOCK = Clock(wall=lambda: NOW)


def gateway(state: StateDirectory) -> Keyring:
    """The keys as the gateway reads them."""
    keyring = Keyring()
    KeyLog(state.keys).follow(keyring)
    return keyring


def test_a_key_is_known_to_the_gateway_and_its_secret_stands_nowhere(state: StateDirectory) -> None:
    made = KeyWriter(state, CLOCK).create("team", None, None)
    assert gateway(state).authenticate(made.secret, NOW).name == "team"
    assert made.secret.encode() not in state.keys.read_bytes()
    assert state.keys.stat().st_mode & 0o077 == 0


def test_the_next_writer_knows_what_the_last_one_wrote(state: StateDirectory) -> None:
    first = KeyWriter(state, CLOCK)
    kept, gone = (first.create(name, None, None) for name in ("kept", "gone"))
    first.revoke(gone.record.id)
    second = KeyWriter(state, CLOCK)
    assert second.listed() == first.listed()
    assert [(one.name, one.revoked_at) for one in second.listed()] == [("kept", None), ("gone", NOW)]
    assert gateway(state).authenticate(kept.secret, NOW)


def test_a_line_that_was_cut_short_never_counted_and_harms_nothing(state: StateDirectory) -> None:
    first = KeyWriter(state, CLOCK)
    first.create("whole", None, None)
    whole = state.keys.read_bytes()
    first.create("torn", None, None)
    state.keys.write_bytes(state.keys.read_bytes()[:-20])
    second = KeyWriter(state, CLOCK)
    assert state.keys.read_bytes() == whole
    made = second.create("after", None, None)
    assert [one.name for one in second.listed()] == ["whole", "after"]
    assert gateway(state).authenticate(made.secret, NOW)


def test_a_line_of_another_version_is_left_alone_and_the_others_count(state: StateDirectory) -> None:
    KeyWriter(state, CLOCK).create("before", None, None)
    with state.keys.open("ab") as log:
        log.write(b'{"schema":"key-renamed/v7","id":"x"}\n\xff\xfe\n')
    writer = KeyWriter(state, CLOCK)
    writer.create("after", None, None)
    assert [one.name for one in writer.listed()] == ["before", "after"]
    assert b"key-renamed/v7" in state.keys.read_bytes()


def test_a_child_never_reaches_further_than_its_parent(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    parent = writer.create("team", 60.0, None, Bounds(Scopes(deployments=("a", "b")))).record.id
    for scopes in (Scopes(), Scopes(deployments=("a", "c"))):
        with pytest.raises(UsageError, match="never reaches further"):
            writer.create("child", None, parent, Bounds(scopes))
    child = writer.create("child", None, parent, Bounds(Scopes(deployments=("a",))))
    assert child.record.parent == parent


@pytest.mark.parametrize("end", ["revoked", "expired", "unknown"])
def test_a_key_that_has_ended_has_no_children(state: StateDirectory, end: str) -> None:
    writer = KeyWriter(state, CLOCK)
    parent = writer.create("team", 60.0, None).record.id
    if end == "revoked":
        writer.revoke(parent)
    later = KeyWriter(state, Clock(wall=lambda: NOW + (61.0 if end == "expired" else 0.0)))
    with pytest.raises(UsageError, match="no live key"):
        later.create("child", None, "nobody" if end == "unknown" else parent)


def test_only_a_key_that_exists_is_revoked_and_once_is_enough(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    key = writer.create("team", None, None).record.id
    with pytest.raises(UsageError, match="there is no key 'nobody'"):
        writer.revoke("nobody")
    writer.revoke(key)
    before = state.keys.read_bytes()
    writer.revoke(key)
    assert state.keys.read_bytes() == before


def test_a_grandchild_needs_the_whole_line_alive(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    top = writer.create("top", None, None).record.id
    middle = writer.create("middle", None, top).record.id
    writer.revoke(top)
    with pytest.raises(UsageError, match="no live key"):
        writer.create("bottom", None, middle)
