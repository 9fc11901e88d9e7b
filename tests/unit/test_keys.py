"""Keys: how they are made, looked up, compared, narrowed, ended; and the log that they are followed in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from modelyard.gateway.keyring import KeyLog, Keyring
from modelyard.gateway.refusals import Refusal, unknown_model
from modelyard.records.base import UnreadableRecord, decode, encode
from modelyard.records.keys import KeyCreated, KeyEvent, KeyRecord, KeyRevoked, Scopes
from modelyard.records.secrets import NewKey, key_record, matches, new_key, public_id
from modelyard.records.topology import Topology

NOW = 1_700_000_000.0
CHAT = "/v1/chat/completions"


def ring(*keys: NewKey) -> Keyring:
    made = Keyring()
    for key in keys:
        made.apply(KeyCreated(key=key.record))
    return made


def refused(keyring: Keyring, secret: str, now: float = NOW) -> bool:
    with pytest.raises(Refusal) as refusal:
        keyring.authenticate(secret, now)
    assert refusal.value.message == "the key is not valid here", "which part was wrong is nobody's business"
    return refusal.value.status == 401


def test_a_new_key_is_long_random_and_not_in_its_record() -> None:
    one, two = new_key("a", NOW), new_key("a", NOW)
    assert one.secret != two.secret
    assert len(one.secret) >= len("my_") + 12 + 1 + 43
    assert one.secret not in encode(one.record).decode()
    assert one.secret[16:] not in encode(one.record).decode()
    assert one.record.id == one.secret[3:15]
    assert matches(one.secret, one.record, NOW)
    assert not matches(one.secret + "x", one.record, NOW)


@pytest.mark.parametrize(
    "secret", ["", "x", "my_", "my_short", "my_0123456789abX", "é" * 40, "my_0123456789ab_", "\x00"]
)
def test_any_string_has_a_public_id_and_any_wrong_one_is_refused(secret: str) -> None:
    assert public_id(secret)
    assert refused(ring(new_key("a", NOW)), secret)


def test_a_secret_chosen_elsewhere_is_found_by_its_hash() -> None:
    record = key_record("sk-legacy", "legacy", NOW)
    assert record.id.startswith("x")
    keyring = Keyring()
    keyring.apply(KeyCreated(key=record))
    assert keyring.authenticate("sk-legacy", NOW) == record
    assert refused(keyring, "sk-legacz")


def test_the_public_part_alone_opens_nothing() -> None:
    key = new_key("a", NOW)
    assert refused(ring(key), f"my_{key.record.id}_guess")
    assert refused(ring(key), key.record.sha256)


def test_a_key_ends_at_its_time_and_when_it_is_revoked() -> None:
    key = new_key("a", NOW, expires_at=NOW + 10)
    keyring = ring(key)
    assert keyring.authenticate(key.secret, NOW + 9.99)
    assert refused(keyring, key.secret, NOW + 10)
    keyring.apply(KeyRevoked(id=key.record.id, at=NOW))
    assert refused(keyring, key.secret)


def test_a_key_ends_with_any_key_above_it() -> None:
    top = new_key("top", NOW, expires_at=NOW + 5)
    middle = new_key("middle", NOW, parent=top.record.id)
    low = new_key("low", NOW, parent=middle.record.id, expires_at=NOW + 9)
    keyring = ring(top, middle, low)
    assert keyring.expires_at(low.record, NOW) == NOW + 5
    assert refused(keyring, low.secret, NOW + 5)
    assert keyring.authenticate(low.secret, NOW)
    keyring.apply(KeyRevoked(id=middle.record.id, at=NOW))
    assert refused(keyring, low.secret)
    assert keyring.authenticate(top.secret, NOW)


def test_a_key_without_its_parent_or_below_itself_is_dead() -> None:
    orphan = new_key("orphan", NOW, parent="missing")
    assert refused(ring(orphan), orphan.secret)
    a, b = key_record("a", "a", NOW, parent=public_id("b")), key_record("b", "b", NOW, parent=public_id("a"))
    keyring = Keyring()
    keyring.apply(KeyCreated(key=a))
    keyring.apply(KeyCreated(key=b))
    assert refused(keyring, "a")


def test_a_key_never_reaches_farther_than_those_above_it() -> None:
    top = new_key("top", NOW, scopes=Scopes(deployments=("m", "n"), endpoints=(CHAT,)))
    low = new_key("low", NOW, parent=top.record.id, scopes=Scopes(deployments=("n", "o")))
    keyring = ring(top, low)
    reached = {name for name in "mno" if keyring.reaches(low.record, name, CHAT)}
    assert reached == {"n"}
    assert not keyring.reaches(low.record, "n", "/v1/completions")
    with pytest.raises(Refusal) as refusal:
        keyring.authorize(low.record, "n", "/v1/completions")
    assert (refusal.value.status, refusal.value.code) == (403, "key_scope")


def test_a_deployment_out_of_reach_looks_like_one_that_does_not_exist() -> None:
    key = new_key("narrow", NOW, scopes=Scopes(deployments=("m",)))
    with pytest.raises(Refusal) as refusal:
        ring(key).authorize(key.record, "another", CHAT)
    absent = unknown_model("another")
    assert (refusal.value.status, refusal.value.body()) == (absent.status, absent.body())


def test_what_a_key_reaches_is_forgotten_when_keys_change() -> None:
    key = new_key("a", NOW)
    keyring = ring(key)
    assert keyring.reaches(key.record, "m", CHAT)
    narrower = KeyRecord(
        id=key.record.id, sha256=key.record.sha256, name="a", created_at=NOW, scopes=Scopes(deployments=())
    )
    keyring.apply(KeyCreated(key=narrower))
    assert not keyring.reaches(keyring.authenticate(key.secret, NOW), "m", CHAT)


# The log.


def line(event: KeyEvent) -> bytes:
    return encode(event) + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.ndjson"


def test_the_log_is_followed_as_it_grows(path: Path) -> None:
    key, keyring, log = new_key("a", NOW), Keyring(), KeyLog(path)
    assert not log.follow(keyring), "no file is no key"
    path.write_bytes(line(KeyCreated(key=key.record)))
    assert log.follow(keyring)
    assert keyring.authenticate(key.secret, NOW)
    assert not log.follow(keyring)
    with path.open("ab") as file:
        file.write(line(KeyRevoked(id=key.record.id, at=NOW)))
    assert log.follow(keyring)
    assert refused(keyring, key.secret)


def test_a_torn_line_waits_for_its_end(path: Path) -> None:
    key, keyring, log = new_key("a", NOW), Keyring(), KeyLog(path)
    whole = line(KeyCreated(key=key.record))
    for end in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert not log.follow(keyring)
        assert refused(keyring, key.secret)
    with path.open("ab") as file:
        file.write(whole[-1:])
    assert log.follow(keyring)
    assert keyring.authenticate(key.secret, NOW)


def test_a_replaced_log_is_read_from_its_beginning(path: Path, tmp_path: Path) -> None:
    old, new, keyring, log = new_key("old", NOW), new_key("new", NOW), Keyring(), KeyLog(path)
    path.write_bytes(line(KeyCreated(key=old.record)))
    log.follow(keyring)
    other = tmp_path / "other"
    other.write_bytes(line(KeyCreated(key=new.record)) + line(KeyRevoked(id="x", at=NOW)))
    os.replace(other, path)
    assert log.follow(keyring)
    assert refused(keyring, old.secret)
    assert keyring.authenticate(new.secret, NOW)


def test_a_shortened_log_forgets_what_it_no_longer_says(path: Path) -> None:
    key, keyring, log = new_key("a", NOW), Keyring(), KeyLog(path)
    path.write_bytes(line(KeyCreated(key=key.record)))
    log.follow(keyring)
    with path.open("r+b") as file:
        file.truncate(0)
    log.follow(keyring)
    assert refused(keyring, key.secret)


def test_a_line_that_is_no_event_is_reported_and_passed_over(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, keyring = new_key("a", NOW), Keyring()
    path.write_bytes(b'{"schema":"key-created/v9"}\nnonsense\n' + line(KeyCreated(key=key.record)))
    assert KeyLog(path).follow(keyring)
    assert keyring.authenticate(key.secret, NOW)
    assert capsys.readouterr().out.count("error: ") == 2


def test_a_record_nested_without_end_is_unreadable_not_a_crash() -> None:
    with pytest.raises(UnreadableRecord):
        decode(b'{"x":' * 100_000, Topology)
    with pytest.raises(UnreadableRecord):
        decode(b"[" * 100_000, KeyCreated)


def test_times_are_those_of_the_wall() -> None:
    key = new_key("a", time.time(), expires_at=time.time() + 60)
    assert ring(key).authenticate(key.secret, time.time())
