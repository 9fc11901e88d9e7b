"""Provider keys by reference: found, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_fakes import SECRET, World, chat, post

from modelyard.cli.credential import secret_of
from modelyard.errors import UsageError
from modelyard.gateway.standalone import prepare
from modelyard.records.topology import Topology


def test_a_key_is_found_where_its_reference_says(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-2\n")
    assert secret_of("env:KEY", {"KEY": "sk-1"}) == "sk-1"
    assert secret_of(f"file:{tmp_path}/key", {}) == "sk-2"


@pytest.mark.parametrize("reference", ["sk-secret", "env:NONE", "file:/does/not/exist", "env:TWO", "vault:x"])
def test_what_cannot_be_used_is_refused_without_repeating_it(reference: str) -> None:
    with pytest.raises(UsageError) as refused:
        secret_of(reference, {"TWO": "sk-secret\nx: y"})
    assert "sk-secret" not in refused.value.message + refused.value.hint


def test_the_engine_hears_its_own_key_and_never_the_clients(tmp_path: Path) -> None:
    world = World(tmp_path)
    prepare(Topology(generation=2, deployments=(world.shape,)), [], "sk-upstream", world.service)
    client, _ = world.client()
    _, engine = world.engine()
    client.data_received(post(chat()))
    head, _, _ = bytes(engine.written).partition(b"\r\n\r\n")
    assert b"\r\nauthorization: Bearer sk-upstream\r\n" in head and head.lower().count(b"authorization") == 1
    assert SECRET.encode() not in head
