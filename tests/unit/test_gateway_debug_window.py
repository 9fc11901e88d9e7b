"""Prompts and answers are written nowhere, but in an open debug window; it closes by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from gateway_fakes import (
    DONE,
    STREAM_HEAD,
    USAGE_EVENT,
    World,
    answer,
    chat,
    chunked,
    deployment,
    event,
    post,
    split_responses,
)

from modelyard.gateway import debug_window
from modelyard.gateway.debug_window import DebugFiles
from modelyard.records.base import decode
from modelyard.records.debug import Overheard
from modelyard.records.keys import Scopes

PROMPT, ANSWER = "a prompt of a client", "what a model said"
BODY = chat(messages=[{"role": "user", "content": PROMPT}])


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "journal").mkdir()
    made = World(tmp_path / "journal", shape=deployment(debug_until=time.time() + 60))
    made.worker.debug = DebugFiles(tmp_path / "debug", "w")
    return made


def ask(world: World, body: bytes = BODY) -> bytes:
    """One request and its plain answer."""
    engine, wire = world.engine()
    client, transport = world.client()
    client.data_received(post(body))
    assert wire.take()
    engine.data_received(answer(ANSWER))
    return transport.take()


def overheard(folder: Path) -> list[Overheard]:
    return [decode(line, Overheard) for path in folder.glob("*.ndjson") for line in path.read_bytes().splitlines()]


def test_in_an_open_window_both_sides_are_written_for_the_owner_alone(world: World, tmp_path: Path) -> None:
    received = ask(world)
    (heard,) = overheard(tmp_path / "debug")
    assert heard.prompt.encode() == BODY and heard.answer.encode() == received and not heard.cut
    assert (heard.request_id, heard.deployment) == (world.records()[0].request_id, "m")
    (path,) = (tmp_path / "debug").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_a_stream_is_heard_as_the_client_received_it(world: World, tmp_path: Path) -> None:
    engine, _ = world.engine()
    client, transport = world.client()
    client.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("one")))
    engine.data_received(chunked(event("two")))
    engine.data_received(chunked(USAGE_EVENT, DONE) + b"0\r\n\r\n")
    (heard,) = overheard(tmp_path / "debug")
    assert heard.answer.encode() == transport.take() and "two" in heard.answer and not heard.cut


def test_a_closed_window_and_one_of_another_deployment_write_nothing(world: World, tmp_path: Path) -> None:
    world.apply(deployment(debug_until=time.time() - 1), deployment("other", debug_until=time.time() + 60))
    ask(world)
    assert not (tmp_path / "debug").exists()


def test_what_a_key_may_not_ask_for_is_not_overheard(world: World, tmp_path: Path) -> None:
    world.add_key("sk-of-another", scopes=Scopes(deployments=("other",)))
    client, transport = world.client()
    client.data_received(post(BODY, secret="sk-of-another"))
    assert split_responses(transport.take())[0][0] == 404
    assert not (tmp_path / "debug").exists()


def test_a_gateway_that_was_given_no_folder_writes_nothing(world: World, tmp_path: Path) -> None:
    world.worker.debug = None
    ask(world)
    assert not (tmp_path / "debug").exists()


def test_what_comes_after_the_window_has_closed_is_not_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = world.engine()
    client, transport = world.client()
    client.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("inside")))
    later = time.time() + 120
    monkeypatch.setattr(debug_window.time, "time", lambda: later)
    engine.data_received(chunked(event("outside"), DONE) + b"0\r\n\r\n")
    (heard,) = overheard(tmp_path / "debug")
    assert "inside" in heard.answer and "outside" not in heard.answer and heard.cut
    assert b"outside" in transport.take()


def test_what_is_longer_than_is_kept_is_cut_and_says_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debug_window, "KEPT_BYTES", 50)
    received = ask(world)
    (heard,) = overheard(tmp_path / "debug")
    assert heard.cut and heard.prompt.encode() == BODY[:50] and heard.answer.encode() == received[:50]


def test_a_file_that_is_full_and_a_link_in_its_place_cost_the_client_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "m.w.ndjson").symlink_to(target)
    assert ANSWER.encode() in ask(world)
    assert not target.exists()
    (tmp_path / "debug" / "m.w.ndjson").unlink()
    monkeypatch.setattr(debug_window, "FILE_BYTES", 10)
    assert ANSWER.encode() in ask(world)
    assert overheard(tmp_path / "debug") == []
    said = capsys.readouterr().out
    assert said.count("error: debug window: m.w.ndjson") == 2 and PROMPT not in said and ANSWER not in said


def test_nothing_of_a_window_reaches_the_journal(world: World, tmp_path: Path) -> None:
    ask(world)
    journal = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert journal and PROMPT.encode() not in journal and ANSWER.encode() not in journal
