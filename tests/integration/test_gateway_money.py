"""Budgets, revocation and rotation of a real gateway, also after it was killed; and a short million."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from gateway_child import MODEL, Gateway, Response, deployment, post, replica

from modelyard.records.keys import Budgets, KeyCreated, KeyRevoked, KeyRotated
from modelyard.records.secrets import hash_of, new_key, new_team, secret_for
from modelyard.selftest.rows.million_requests import ROW
from modelyard.selftest.running import run
from modelyard.state import StateDirectory
from modelyard.testing import FakeEngine

Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture
def gateway(state: StateDirectory) -> Iterator[Gateway]:
    with Gateway(state) as running:
        yield running


def chat(tokens: int) -> bytes:
    message = {"role": "user", "content": "hello"}
    return json.dumps({"model": MODEL, "messages": [message], "max_tokens": tokens}).encode()


def ask(gateway: Gateway, secret: str) -> Response:
    with gateway.wire() as wire:
        return wire.ask(post(chat(4), key=secret))


async def test_what_a_team_has_spent_is_spent_also_after_the_gateway_was_killed(
    gateway: Gateway, eventually: Eventually
) -> None:
    team = new_team("research", time.time(), budgets=Budgets(tokens_per_month=300))
    one, other = (new_key(name, time.time(), parent=team.id) for name in ("one", "other"))
    for key in (team, one.record, other.record):
        gateway.log_key(KeyCreated(key=key))
    async with FakeEngine() as engine:
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: ask(gateway, one.secret).status == 200)
        answered = 0
        while ask(gateway, one.secret).status == 200:
            answered += 1
            assert answered < 100
        gateway.kill()
        gateway.start()
        refused = ask(gateway, other.secret)
    error = json.loads(refused.body)["error"]
    assert (refused.status, error["code"]) == (429, "insufficient_quota")
    assert "(team 'research')" in error["message"] and refused.headers["x-should-retry"] == "false"
    spent = sum(record.prompt_tokens + record.completion_tokens for record in gateway.records())
    assert f": {300 - spent} left" in error["message"], "to the token, what the journal holds"


async def test_a_revoked_key_and_a_former_secret_are_dead_within_a_second_also_on_an_open_connection(
    gateway: Gateway, eventually: Eventually
) -> None:
    key = new_key("ci", time.time())
    gateway.log_key(KeyCreated(key=key.record))
    async with FakeEngine() as engine:
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: ask(gateway, key.secret).status == 200)
        with gateway.wire() as kept:
            request = post(chat(1), key=key.secret)
            assert kept.ask(request).status == 200
            fresh = secret_for(key.record.id)
            now = time.time()
            gateway.log_key(KeyRotated(id=key.record.id, at=now, sha256=hash_of(fresh), former_until=now))
            await eventually(lambda: ask(gateway, key.secret).status == 401, within_s=1.0)
            assert kept.ask(request).status == 401
        assert ask(gateway, fresh).status == 200
        gateway.log_key(KeyRevoked(id=key.record.id, at=time.time()))
        await eventually(lambda: ask(gateway, fresh).status == 401, within_s=1.0)


def test_mixed_traffic_with_kills_in_between_is_counted_once_everywhere() -> None:
    found = run(ROW, seed=7, short=True, command="", on_progress=lambda done: None)
    assert found.verdict == "green", found.outcome.failed
    assert found.outcome.counts["reset"] > 0, "the kills met requests"
