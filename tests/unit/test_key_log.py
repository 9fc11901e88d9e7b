"""The writer of the key log: what was acknowledged is on disk, and nothing else ever counts."""

from __future__ import annotations

import pytest

from modelyard.clock import Clock
from modelyard.control.key_bounds import Bounds, bounds_of
from modelyard.control.key_log import KeyWriter
from modelyard.errors import UsageError
from modelyard.gateway.keyring import KeyLog, Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.records.keys import Budgets, Limits, Scopes
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


def test_a_child_never_has_more_than_any_node_above_it(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    top = writer.create_team(
        "all", None, Bounds(limits=Limits(requests_per_minute=60), budgets=Budgets(pico_per_day=5 * 10**12))
    )
    middle = writer.create_team("part", "all", Bounds(limits=Limits(tokens_per_minute=100)))
    assert middle.parent == top.id
    for bounds, says in (
        (Bounds(limits=Limits(requests_per_minute=61)), "61 requests per minute, where team 'all' has 60"),
        (Bounds(limits=Limits(tokens_per_minute=101)), "101 tokens per minute, where team 'part' has 100"),
        (Bounds(budgets=Budgets(pico_per_day=5 * 10**12 + 1)), "budget per day, where team 'all' has 5.00"),
    ):
        with pytest.raises(UsageError, match=says):
            writer.create("child", None, "part", bounds)
    made = writer.create("child", None, "part", Bounds(limits=Limits(requests_per_minute=60)))
    assert writer.shown(made.record.id).line == ("part", "all")


def test_a_teams_name_is_its_own_while_it_lives(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    team = writer.create_team("research", None)
    with pytest.raises(UsageError, match="there is a team 'research' already"):
        writer.create_team("research", None)
    made = writer.create("ci", None, "research")
    writer.revoke("research")
    with pytest.raises(Refusal):
        gateway(state).authenticate(made.secret, NOW)
    assert writer.create_team("research", None).id != team.id


def test_a_rotated_key_has_another_secret_and_the_old_one_for_as_long_as_it_was_said(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    made = writer.create("ci", None, None)
    fresh = writer.rotate(made.record.id, 60.0)
    for keyring in (gateway(state), gateway(state)):
        assert keyring.authenticate(fresh, NOW + 61).id == made.record.id
        assert keyring.authenticate(made.secret, NOW + 59).id == made.record.id
        with pytest.raises(Refusal):
            keyring.authenticate(made.secret, NOW + 60)
    newest = KeyWriter(state, CLOCK).rotate(made.record.id, 60.0)
    with pytest.raises(Refusal):
        gateway(state).authenticate(made.secret, NOW)
    assert {gateway(state).authenticate(secret, NOW).id for secret in (fresh, newest)} == {made.record.id}


def test_only_a_live_key_of_ours_is_rotated(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    team, gone = writer.create_team("research", None), writer.create("gone", None, None)
    writer.revoke(gone.record.id)
    for key_id, says in ((team.id, "no secret of ours"), (gone.record.id, "has ended"), ("nobody", "no key")):
        with pytest.raises(UsageError, match=says):
            writer.rotate(key_id, 0.0)


# Changes.


def test_changed_bounds_are_the_gateways_and_the_next_writers(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    made = writer.create("ci", None, None, Bounds(limits=Limits(requests_per_minute=60)))
    bounds = Bounds(limits=Limits(tokens_per_minute=9), budgets=Budgets(tokens_per_day=50), priority=2, weight=3.0)
    writer.change("ci", bounds, NOW + 5)
    for keys in (writer.keys, KeyWriter(state, CLOCK).keys, gateway(state).keys):
        key = keys[made.record.id]
        assert bounds_of(key) == bounds and key.expires_at == NOW + 5
    assert gateway(state).authenticate(made.secret, NOW).sha256 == made.record.sha256


def test_a_change_that_changes_nothing_writes_nothing(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    bounds = Bounds(limits=Limits(requests_per_minute=60))
    key = writer.create("ci", 60.0, None, bounds).record
    before = state.keys.read_bytes()
    writer.change(key.id, bounds, key.expires_at)
    assert state.keys.read_bytes() == before
    writer.change(key.id, Bounds(), key.expires_at)
    assert state.keys.read_bytes() != before


def test_no_change_gives_a_key_more_than_its_parent_nor_leaves_a_child_with_more(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    team = writer.create_team("research", None, Bounds(Scopes(deployments=("a", "b")), Limits(max_tokens=100)))
    scopes = Scopes(deployments=("a",))
    child = writer.create("ci", None, "research", Bounds(scopes, Limits(max_tokens=80), priority=1)).record
    gone = writer.create("gone", None, "research", Bounds(scopes, Limits(max_tokens=100))).record
    writer.revoke(gone.id)
    for key_id, bounds, says in (
        (child.id, Bounds(scopes, Limits(max_tokens=101)), "101 max tokens, where team 'research' has 100"),
        (child.id, Bounds(), "team 'research' reaches a, b"),
        (team.id, Bounds(limits=Limits(max_tokens=79)), "key 'ci' would have more than its parent: 80 max tokens"),
        (team.id, Bounds(Scopes(deployments=("b",))), "key 'ci' would have more than its parent"),
        (team.id, Bounds(priority=0), "1 priority, where team 'research' has 0"),
        (child.id, Bounds(scopes, weight=2.0), "has a share of its seats"),
    ):
        before = state.keys.read_bytes()
        with pytest.raises(UsageError, match=says):
            writer.change(key_id, bounds, None)
        assert state.keys.read_bytes() == before
    writer.change(team.id, Bounds(Scopes(deployments=("a",)), Limits(max_tokens=80)), None)


def test_what_has_ended_is_not_changed_and_nothing_is_changed_to_have_ended(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    team = writer.create_team("research", None)
    key = writer.create("ci", None, "research").record
    with pytest.raises(UsageError, match="cannot have ended already"):
        writer.change(key.id, Bounds(), NOW)
    writer.revoke(team.id)
    for key_id in (team.id, key.id):
        with pytest.raises(UsageError, match="has ended"):
            writer.change(key_id, Bounds(priority=1), None)


def test_a_name_finds_the_only_living_key_that_has_it(state: StateDirectory) -> None:
    writer = KeyWriter(state, CLOCK)
    first = writer.create("ci", None, None).record
    assert writer.known("ci") == first
    second = writer.create("ci", None, None).record
    with pytest.raises(UsageError, match="2 keys are named 'ci'") as ambiguous:
        writer.revoke("ci")
    assert first.id in ambiguous.value.hint and second.id in ambiguous.value.hint
    writer.revoke(first.id)
    assert writer.known("ci") == second
