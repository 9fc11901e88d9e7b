"""What a request reserves, is refused, is charged and settles, on its whole way through the gateway."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import (
    DONE,
    LAST_CHUNK,
    ONE_REPLICA,
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
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from modelyard.gateway.estimate import UNSTATED_ANSWER_TOKENS, estimated, may_use, prompt_tokens
from modelyard.gateway.fields import parse
from modelyard.records.keys import Budgets, KeyCreated, KeyRotated, Limits
from modelyard.records.secrets import NewKey, hash_of, new_key, new_team, secret_for
from modelyard.records.topology import Prices

PRICES = Prices(currency="EUR", input_pico=10, cached_input_pico=1, output_pico=1000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, shape=deployment(prices=PRICES))


def bounded(world: World, limits: Limits | None = None, **budgets: int) -> NewKey:
    """A key with these bounds."""
    key = new_key("ci", time.time(), limits=limits or Limits(), budgets=Budgets(**budgets))
    world.worker.keyring.apply(KeyCreated(key=key.record))
    return key


def tokens_used(world: World, key: NewKey) -> int:
    (account,) = world.worker.accounts.line(key.record)
    assert account.tokens is not None
    return account.tokens.used


def ask(world: World, secret: str, engine_says: bytes = b"", **fields: Any) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own, answered by an engine that says `engine_says`."""
    client, transport = world.client()
    engine, asked = world.engine()
    client.data_received(post(chat(**fields), secret=secret))
    if asked.written:
        engine.data_received(engine_says)
    (response,) = split_responses(transport.take())
    return response


def test_a_record_holds_the_exact_cost_and_a_deployment_without_prices_costs_nothing(world: World) -> None:
    key = bounded(world)
    ask(world, key.secret, answer(prompt_tokens=30, completion_tokens=4))
    world.apply(deployment())
    ask(world, key.secret, answer(prompt_tokens=30, completion_tokens=4))
    assert [record.cost_pico for record in world.records()] == [30 * 10 + 4 * 1000, 0]


def test_cached_tokens_are_charged_at_their_own_price(world: World) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 20}}
    body = json.dumps({"object": "chat.completion", "choices": [], "usage": usage}).encode()
    response = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    ask(world, bounded(world).secret, response)
    assert world.records()[0].cost_pico == 10 * 10 + 20 * 1 + 4 * 1000


def test_a_minutes_requests_are_counted_and_the_one_too_many_is_told_when_to_come_back(world: World) -> None:
    key = bounded(world, Limits(requests_per_minute=2))
    for left in ("1", "0"):
        status, headers, _ = ask(world, key.secret, answer())
        assert (status, headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == (
            200,
            "2",
            left,
        )
    status, headers, body = ask(world, key.secret)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert error["message"] == "the limit of 2 requests per minute (key 'ci')"
    assert 59 <= int(headers["retry-after"]) <= 61 and headers["x-ratelimit-remaining-requests"] == "0"
    assert [(record.status, record.error) for record in world.records()][2:] == [(429, "rate_limit_exceeded")]


def test_tokens_are_reserved_when_a_request_comes_and_settled_by_the_engines_count(world: World) -> None:
    key = bounded(world, Limits(tokens_per_minute=1000))
    body = chat(max_tokens=500)
    status, headers, _ = ask(world, key.secret, answer(prompt_tokens=3, completion_tokens=7), max_tokens=500)
    assert (status, headers["x-ratelimit-remaining-tokens"]) == (200, str(500 - prompt_tokens(len(body))))
    assert tokens_used(world, key) == 10


@pytest.mark.parametrize("outcome", ["refused by the engine", "no engine", "a full queue"])
def test_what_is_not_answered_gives_its_reservation_back(world: World, outcome: str) -> None:
    key = bounded(world, Limits(tokens_per_minute=100_000, concurrent_requests=9), tokens_per_day=100_000)
    if outcome == "no engine":
        world.apply(deployment(open=False))
    elif outcome == "a full queue":
        world.apply(deployment(replicas=(replace(ONE_REPLICA[0], draining=True),), max_queued=0))
    refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    status, _, _ = ask(world, key.secret, refusal)
    assert status in (400, 503)
    (account,) = world.worker.accounts.line(key.record)
    assert (account.in_flight, tokens_used(world, key)) == (0, 0)


def test_a_stream_settles_at_its_end_by_the_usage_that_the_engine_states(world: World) -> None:
    key = bounded(world, Limits(tokens_per_minute=100_000, concurrent_requests=1))
    client, transport = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat(stream=True), secret=key.secret))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    (account,) = world.worker.accounts.line(key.record)
    assert account.in_flight == 1 and tokens_used(world, key) > 1000
    assert b"x-ratelimit-remaining-tokens: " in transport.take()
    engine.data_received(chunked(USAGE_EVENT, DONE) + LAST_CHUNK)
    assert (account.in_flight, tokens_used(world, key)) == (0, 12)
    assert world.records()[0].cost_pico == 5 * 10 + 7 * 1000


def test_a_client_that_leaves_pays_for_what_was_read_and_written_by_estimate(world: World) -> None:
    key = bounded(world, Limits(tokens_per_minute=100_000))
    body = chat(stream=True)
    client, transport = world.client()
    engine, _ = world.engine()
    client.data_received(post(body, secret=key.secret))
    engine.data_received(STREAM_HEAD + chunked(event("a")) + chunked(event("b")))
    transport.lose()
    (record,) = world.records()
    assert (record.outcome, record.usage_source) == ("client_gone", "estimated")
    assert (record.prompt_tokens, record.completion_tokens) == (prompt_tokens(len(body)), 2)
    assert record.cost_pico == record.prompt_tokens * 10 + 2 * 1000
    assert tokens_used(world, key) == record.prompt_tokens + 2


def test_a_spent_budget_says_whose_it_is_and_that_asking_again_is_in_vain(world: World) -> None:
    team = new_team("research", time.time(), budgets=Budgets(pico_per_month=10_000_000_000))
    world.worker.keyring.apply(KeyCreated(key=team))
    key = new_key("ci", time.time(), parent=team.id)
    world.worker.keyring.apply(KeyCreated(key=key.record))
    world.apply(deployment(prices=Prices(currency="EUR", input_pico=0, cached_input_pico=0, output_pico=10**9)))
    assert ask(world, key.secret, answer(completion_tokens=9), max_tokens=10)[0] == 200
    status, headers, body = ask(world, key.secret, max_tokens=2)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (429, "insufficient_quota")
    assert error["message"] == (
        "the budget of 0.01 per month: 0.001 left, this request may take 0.002 (team 'research')"
    )
    assert headers["x-should-retry"] == "false" and int(headers["retry-after"]) > 0
    assert ask(world, key.secret, answer(completion_tokens=1), max_tokens=1)[0] == 200


def test_keys_that_nothing_bounds_hear_nothing_of_limits(world: World) -> None:
    _, headers, _ = ask(world, bounded(world).secret, answer())
    assert not [name for name in headers if name.startswith("x-ratelimit")]


def test_after_a_rotation_both_secrets_open_until_the_overlap_ends_also_on_an_open_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bounded(world)
    client, transport = world.client()

    def again(secret: str) -> int:
        engine, asked = world.engine()
        client.data_received(post(chat(), secret=secret))
        if asked.written:
            engine.data_received(answer())
        ((status, _, _),) = split_responses(transport.take())
        return status

    assert again(key.secret) == 200
    now = time.time()
    fresh = secret_for(key.record.id)
    world.worker.keyring.apply(KeyRotated(id=key.record.id, at=now, sha256=hash_of(fresh), former_until=now + 3600.0))
    assert [again(secret) for secret in (key.secret, fresh, key.secret)] == [200, 200, 200]
    monkeypatch.setattr(time, "time", lambda: now + 3600.1)
    assert again(fresh) == 200
    assert again(key.secret) == 401


def test_a_team_has_no_secret_that_opens_it(world: World) -> None:
    team = new_team("research", time.time())
    world.worker.keyring.apply(KeyCreated(key=team))
    for secret in (team.id, f"my_{team.id}_", "", f"my_{team.id[5:]}_x"):
        assert ask(world, secret or "x")[0] == 401


# What a request may use.


@pytest.mark.parametrize(
    ("fields", "context", "answers"),
    [
        ({}, 0, UNSTATED_ANSWER_TOKENS),
        ({"max_tokens": 5}, 0, 5),
        ({"max_completion_tokens": 7}, 0, 7),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 0, 9),
        ({"max_tokens": 5, "n": 3}, 0, 15),
        ({"max_tokens": 1_000_000}, 4096, 4096),
        ({}, 512, 512),
    ],
)
def test_the_longest_answer_is_what_was_asked_for_within_the_context(
    fields: dict[str, Any], context: int, answers: int
) -> None:
    body = chat(**fields)
    call = parse(body, "/v1/chat/completions").call
    asked = may_use(*estimated(call, len(body), context), PRICES, 1.0)
    prompt = prompt_tokens(len(body))
    assert (asked.tokens, asked.cost_pico) == (prompt + answers, prompt * 10 + answers * 1000)


@given(st.text(alphabet=st.characters(codec="ascii", categories=("L", "Zs")), max_size=400))
def test_a_prompt_of_words_is_estimated_at_no_less_than_a_token_for_three_letters(text: str) -> None:
    body = chat(messages=[{"role": "user", "content": text}])
    assert prompt_tokens(len(body)) * 3 >= len(text)
