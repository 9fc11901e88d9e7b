"""What a key's line comes to: one share for each team, the longest answer, and bounds that change while it is used."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import MODEL, World, answer, deployment, post, split_responses
from msgspec.structs import replace

from modelyard.gateway.seeding import Seeding
from modelyard.gateway.terms import Terms, terms_of
from modelyard.records.keys import Budgets, KeyChanged, KeyCreated, KeyRecord, Limits
from modelyard.records.secrets import NewKey, new_key
from modelyard.records.topology import Replica

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES, EMBEDDINGS = "/v1/messages", "/v1/responses", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"input": "hi"},
    EMBEDDINGS: {"input": "hi"},
}


def add(world: World, parent: KeyRecord | None = None, **changes: Any) -> NewKey:
    made = new_key("ci", time.time(), parent=parent.id if parent else None)
    key = NewKey(made.secret, replace(made.record, **changes))
    world.worker.keyring.apply(KeyCreated(key=key.record))
    return key


def add_team(world: World, name: str, **changes: Any) -> KeyRecord:
    team = replace(KeyRecord(id=f"team-{name}", sha256="", name=name, created_at=0.0), **changes)
    world.worker.keyring.apply(KeyCreated(key=team))
    return team


def ask(world: World, key: NewKey, path: str = CHAT, **fields: Any) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Status, what the client was told, and what the engine was asked ({} where nothing)."""
    client, transport = world.client()
    engine, asked = world.engine()
    client.data_received(
        post(json.dumps({"model": MODEL, **BODIES[path], **fields}).encode(), path=path, secret=key.secret)
    )
    sent = bytes(asked.written).partition(b"\r\n\r\n")[2]
    if sent:
        engine.data_received(answer(prompt_tokens=30, completion_tokens=4))
    [(status, _, told)] = split_responses(transport.take())
    return status, json.loads(told), json.loads(sent) if sent else {}


# The line.


def node(name: str, most: int | None = None, priority: int | None = None, weight: float = 1.0) -> KeyRecord:
    limits = Limits(max_tokens=most)
    return KeyRecord(id=name, sha256="", name=name, created_at=0.0, limits=limits, priority=priority, weight=weight)


def test_a_line_has_the_share_of_its_top_and_the_least_that_any_of_it_states() -> None:
    assert terms_of([node("a")]) == Terms("a", 1.0, 0, None)
    assert terms_of([node("a", 9, 2), node("b", 7), node("c", None, 5, 2.5)]) == Terms("c", 2.5, 2, 7)
    assert terms_of([node("a"), node("b", priority=-1)]) == Terms("b", 1.0, -1, None)


def test_a_key_without_a_priority_has_its_teams(tmp_path: Path) -> None:
    world = World(tmp_path)
    key = add(world, add_team(world, "a", priority=3))
    assert world.worker.keyring.terms(key.record).priority == 3


# Shares.


def test_a_team_has_one_share_however_many_keys_it_has(tmp_path: Path) -> None:
    one_seat = (Replica(name="r0", launch="l0", address="unix:/nowhere", max_in_flight=1),)
    world = World(tmp_path, shape=deployment(replicas=one_seat))
    many = add_team(world, "many")
    keys = {f"many-{number}": add(world, many) for number in range(3)} | {"alone": add(world)}
    engine, engine_side = world.engine()
    for name, key in keys.items():
        client, _ = world.client()
        body = {"model": MODEL, "messages": [{"role": "user", "content": name}], "max_tokens": 5}
        client.data_received(post(json.dumps(body).encode(), secret=key.secret))
    served: list[str] = []
    while sent := engine_side.take().partition(b"\r\n\r\n")[2]:
        served.append(json.loads(sent)["messages"][0]["content"])
        engine.data_received(answer())
    assert served == ["many-0", "alone", "many-1", "many-2"], "the team had its turn when one of its keys had it"
    assert {record.key_id for record in world.records()} == {key.record.id for key in keys.values()}


# The longest answer.


@pytest.fixture
def world(tmp_path: Path) -> World:
    endpoints = (CHAT, COMPLETIONS, EMBEDDINGS)
    return World(tmp_path, shape=deployment(endpoints=endpoints, context_tokens=1000))


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (COMPLETIONS, "max_tokens"),
        (MESSAGES, "max_tokens"),
        (RESPONSES, "max_output_tokens"),
    ],
)
def test_an_answer_longer_than_the_keys_is_refused_by_the_field_that_asked(world: World, path: str, field: str) -> None:
    key = add(world, add_team(world, "a", limits=Limits(max_tokens=50)))
    assert ask(world, key, path, **{field: 50})[0] == 200
    status, told, sent = ask(world, key, path, **{field: 51})
    assert (status, sent) == (400, {})
    assert told["error"]["message"] == f"{field} is 51: this key may ask for an answer of at most 50 tokens"
    assert told["error"].get("param", field) == field, "Anthropic's errors have no such word"


@pytest.mark.parametrize(("path", "field"), [(CHAT, "max_tokens"), (COMPLETIONS, "max_tokens")])
def test_where_no_length_is_stated_the_keys_is_asked_for(world: World, path: str, field: str) -> None:
    key = add(world, limits=Limits(max_tokens=50))
    assert ask(world, key, path)[2][field] == 50
    assert ask(world, add(world), path)[2].get(field) is None
    wide = add(world, limits=Limits(max_tokens=1000))
    assert ask(world, wide, path)[2].get(field) is None, "the context ends before"


@pytest.mark.parametrize("native", [False, True])
def test_a_response_of_no_stated_length_is_held_to_the_keys_too(tmp_path: Path, native: bool) -> None:
    world = World(tmp_path, shape=deployment(endpoints=(CHAT, RESPONSES) if native else (CHAT,)))
    key = add(world, limits=Limits(max_tokens=50))
    sent = ask(world, key, RESPONSES)[2]
    assert sent["max_output_tokens" if native else "max_completion_tokens"] == 50


def test_what_answers_without_tokens_is_not_held_to_a_length(world: World) -> None:
    status, _, sent = ask(world, add(world, limits=Limits(max_tokens=1)), EMBEDDINGS)
    assert status == 200 and "max_tokens" not in sent


def test_less_is_reserved_where_less_can_be_asked_for(world: World) -> None:
    key = add(world, limits=Limits(max_tokens=5, tokens_per_minute=200))
    assert ask(world, key)[0] == 200
    assert ask(world, add(world, limits=Limits(tokens_per_minute=200)))[0] == 429


# Changes.


def test_a_change_holds_from_the_next_request_on_also_on_the_same_connection(world: World) -> None:
    key = add(world)
    client, transport = world.client()
    engine, _ = world.engine()
    statuses: list[int] = []
    for change in (Limits(), Limits(max_tokens=10), Limits()):
        world.worker.keyring.apply(KeyChanged(id=key.record.id, at=0.0, limits=change))
        body = {"model": MODEL, **BODIES[CHAT], "max_tokens": 20}
        client.data_received(post(json.dumps(body).encode(), secret=key.secret))
        if not transport.written:
            engine.data_received(answer())
        statuses += [status for status, _, _ in split_responses(transport.take())]
    assert statuses == [200, 400, 200]


def test_a_changed_limit_counts_what_was_used_under_the_one_before(world: World) -> None:
    key = add(world, limits=Limits(requests_per_minute=1))
    change = KeyChanged(id=key.record.id, at=0.0, limits=Limits(requests_per_minute=2))
    assert [ask(world, key)[0] for _ in range(2)] == [200, 429]
    world.worker.keyring.apply(change)
    assert [ask(world, key)[0] for _ in range(2)] == [200, 429]


def test_a_budget_that_comes_later_counts_what_was_used_before_it_at_every_node(world: World) -> None:
    team = add_team(world, "a")
    keys = [add(world, team), add(world, team)]
    worker = world.worker
    seeding = Seeding(worker.keyring, world.folder / "spending.json", world.folder)
    seeding.keys_changed(worker.accounts)
    for key in keys:
        assert ask(world, key, max_tokens=5)[0] == 200
    for budgets, left in (
        (Budgets(tokens_per_day=100), 100 - 68),
        (Budgets(tokens_per_month=100), 100 - 68),
        (Budgets(), None),
        (Budgets(tokens_per_day=90), 90 - 68),
    ):
        worker.keyring.apply(KeyChanged(id=team.id, at=0.0, budgets=budgets))
        seeding.keys_changed(worker.accounts)
        if left is not None:
            _, told, _ = ask(world, keys[0], max_tokens=500)
            assert f"{left} left" in told["error"]["message"]


def test_a_budget_that_is_younger_than_a_request_holds_nothing_of_it(world: World) -> None:
    key = add(world, limits=Limits(requests_per_minute=100))
    client, transport = world.client()
    engine, _ = world.engine()
    client.data_received(
        post(json.dumps({"model": MODEL, **BODIES[CHAT], "max_tokens": 500}).encode(), secret=key.secret)
    )
    budgets = Budgets(tokens_per_day=600)
    world.worker.keyring.apply(KeyChanged(id=key.record.id, at=0.0, limits=key.record.limits, budgets=budgets))
    assert ask(world, key, max_tokens=1)[0] == 200
    engine.data_received(answer(prompt_tokens=30, completion_tokens=4))
    assert split_responses(transport.take())[0][0] == 200
    _, told, _ = ask(world, key, max_tokens=590)
    assert f"{600 - 34 - 34} left" in told["error"]["message"]
