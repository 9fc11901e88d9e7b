"""The gateway before real engine processes that answer, misbehave and die: what clients and the journal see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import openai
import pytest
from gateway_child import KEY, MODEL, Gateway, deployment, post, replica

from modelyard.gateway.balance import replay
from modelyard.records.journal import RequestRecord
from modelyard.records.topology import Failover
from modelyard.state import StateDirectory
from modelyard.testing import FakeEngine

Eventually = Callable[..., Awaitable[object]]
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
WORDS: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "count"}]}


@pytest.fixture
def gateway(state: StateDirectory) -> Iterator[Gateway]:
    with Gateway(state) as running:
        yield running


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as running:
        yield running


@pytest.fixture
def connections() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def route(gateway: Gateway, engine: FakeEngine, **changes: Any) -> None:
    cap = changes.pop("max_in_flight", 16)
    gateway.publish(deployment(replica(engine.address, max_in_flight=cap), **changes))


async def ready(gateway: Gateway, eventually: Eventually) -> None:
    def open_now() -> bool:
        with gateway.wire() as wire:
            return wire.ask(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").status == 200

    await eventually(open_now)


@pytest.fixture
async def served(gateway: Gateway, engine: FakeEngine, eventually: Eventually) -> Gateway:
    route(gateway, engine)
    await ready(gateway, eventually)
    return gateway


async def journal(gateway: Gateway, eventually: Eventually, count: int) -> list[RequestRecord]:
    """The records, once there are `count` of them."""
    await eventually(lambda: len(gateway.records()) >= count, what=f"{count} records")
    records = gateway.records()
    assert len(records) == count
    return records


async def is_idle(engine: FakeEngine) -> bool:
    counters = (await engine.seen())["counters"]
    return counters["running"] == 0 and counters["waiting"] == 0


# What clients see.


async def test_the_official_client_gets_answers_streamed_and_whole(served: Gateway, eventually: Eventually) -> None:
    async with served.client() as client:
        whole = await client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == "The capital of Japan is Tokyo."
        stream = await client.chat.completions.create(**ASK, stream=True)
        events = [event async for event in stream]
        assert "".join(event.choices[0].delta.content or "" for event in events) == "The capital of Japan is Tokyo."
        assert all(event.choices for event in events), "the usage event was not asked for"
        text = await client.completions.create(model=MODEL, prompt="The capital of France is")
        assert text.choices[0].text == " Paris."
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
    for record in await journal(served, eventually, 3):
        assert (record.outcome, record.status, record.usage_source) == ("complete", 200, "engine")
        assert record.completion_tokens > 0
        assert record.prompt_tokens > 0
        assert record.decision is not None
        assert replay(record.decision)


async def test_usage_reaches_the_client_only_if_asked_and_the_journal_always(
    served: Gateway, eventually: Eventually
) -> None:
    async with served.client() as client:
        usages = []
        for options in ({}, {"stream_options": {"include_usage": True}}):
            stream = await client.chat.completions.create(**WORDS, max_tokens=5, stream=True, **options)
            usages.append([event.usage async for event in stream if event.usage is not None])
    assert usages[0] == []
    assert [usage.completion_tokens for usage in usages[1]] == [5]
    records = await journal(served, eventually, 2)
    assert [(record.completion_tokens, record.usage_source) for record in records] == [(5, "engine"), (5, "engine")]


async def test_refusals_are_the_clients_typed_errors(served: Gateway) -> None:
    async with served.client() as client:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(**{**ASK, "model": "other"})
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ASK, temperature=9)
        assert refused.value.param == "temperature"
    async with served.client("wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(**ASK)


async def test_fields_that_are_not_known_are_named_in_a_header_and_kept_from_the_engine(
    served: Gateway, engine: FakeEngine
) -> None:
    body = json.dumps({**ASK, "api_base": "http://evil", "x\r\nset-cookie": 1}).encode()
    with served.wire() as wire:
        response = wire.ask(post(body))
    assert response.status == 200
    assert response.headers["x-modelyard-ignored-fields"] == "api_base"
    assert "set-cookie" not in response.headers
    [seen] = (await engine.seen())["requests"]
    assert set(json.loads(seen["body"])) == {"model", "messages"}
    assert "authorization" not in seen["headers"]
    assert KEY not in json.dumps(seen)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":1000000000}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":-1}',
        b'{"model":"m","model":"m","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b"[" * 100_000,
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    ],
)
async def test_a_bad_request_never_reaches_the_engine(served: Gateway, engine: FakeEngine, body: bytes) -> None:
    with served.wire() as wire:
        assert wire.ask(post(body)).status == 400
        assert wire.ask(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").status == 200, "the connection goes on"
    assert (await engine.seen())["requests"] == []


async def test_a_large_prompt_arrives_whole(served: Gateway, engine: FakeEngine) -> None:
    text = "x" * 3_000_000
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1}).encode()
    with served.wire() as wire:
        assert wire.ask(post(body)).status == 200
        assert wire.ask(post(body)).status == 200
    for seen in (await engine.seen())["requests"]:
        assert json.loads(seen["body"])["messages"][0]["content"] == text


# Engines that misbehave.


async def test_a_stream_cut_short_ends_in_an_error_event(
    served: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    await engine.set(truncate_after_tokens=3)
    with served.wire() as wire:
        response = wire.ask(post(json.dumps({**WORDS, "stream": True}).encode()))
        assert wire.at_end()
    assert b"[DONE]" not in response.body
    assert b'"code":"truncated"' in response.body.split(b"\n\n")[-2]
    [record] = await journal(served, eventually, 1)
    assert (record.outcome, record.status, record.usage_source) == ("truncated", 200, "estimated")
    assert record.completion_tokens >= 3
    async with served.client() as client:
        with pytest.raises(openai.APIError, match="before it was complete"):
            async for _ in await client.chat.completions.create(**WORDS, stream=True):
                pass


async def test_an_answer_cut_short_is_unavailable(served: Gateway, engine: FakeEngine, eventually: Eventually) -> None:
    await engine.set(truncate_after_tokens=3)
    with served.wire() as wire:
        response = wire.ask(post(json.dumps(WORDS).encode()))
    assert (response.status, response.headers["retry-after"]) == (503, "2")
    [record] = await journal(served, eventually, 1)
    assert record.outcome == "upstream_failed"


async def test_an_engine_that_dies_before_its_first_byte_is_unavailable(
    served: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    await engine.set(crash_on_text="poison")
    body = json.dumps({**WORDS, "messages": [{"role": "user", "content": "poison"}]}).encode()
    with served.wire() as wire:
        response = wire.ask(post(body))
        assert (response.status, response.headers["retry-after"]) == (503, "2")
        assert await engine.ended() == 1
        again = wire.ask(post(body))
        assert (again.status, again.headers["retry-after"]) == (503, "2")
        assert b"every replica has failed this request" in again.body
        other = wire.ask(post(json.dumps(WORDS).encode()))
        assert (other.status, other.headers["retry-after"]) == (503, "2")
        assert b"engine_unavailable" in other.body
        assert b"unix:" not in other.body, "where engines live is nobody's business"
    outcomes = [record.outcome for record in await journal(served, eventually, 3)]
    assert outcomes == ["upstream_failed", "unavailable", "upstream_failed"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_ends_two_engines_is_refused_and_the_third_one_serves_on(
    gateway: Gateway, eventually: Eventually, stream: bool
) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(crash_on_text="poison")) for _ in range(3)]
        replicas = [replica(engine.address, f"r{number}") for number, engine in enumerate(engines)]
        gateway.publish(deployment(*replicas, failover=Failover(retries_per_s=100.0)))
        await ready(gateway, eventually)
        poison = {**ASK, "messages": [{"role": "user", "content": "poison"}], "stream": stream}
        async with gateway.client() as client:
            for _ in range(3):
                with pytest.raises(openai.UnprocessableEntityError, match="has ended the engine 2 times"):
                    await client.with_options(max_retries=3).chat.completions.create(**poison)
            answer = await client.chat.completions.create(**ASK)
        assert "Tokyo" in (answer.choices[0].message.content or "")
        ended = [engine for engine in engines if await gone(engine)]
    assert len(ended) == 2
    refused = [record for record in gateway.records() if record.error == "poison_request"]
    assert [record.attempts for record in refused if record.attempts] in ([], [2])
    assert len(refused) == 3


async def gone(engine: FakeEngine) -> bool:
    try:
        await engine.seen()
    except (OSError, EOFError):
        return True
    return False


async def test_an_engine_that_takes_no_connection_costs_no_request_while_another_one_serves(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    async with FakeEngine() as dead:
        gateway.publish(deployment(replica(dead.address, "dead"), replica(engine.address, "alive", max_in_flight=4)))
        await ready(gateway, eventually)
        dead.kill()
        await dead.ended()
        async with gateway.client() as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(20)))
    assert all("Tokyo" in (answer.choices[0].message.content or "") for answer in answers)
    records = gateway.records()
    assert {record.replica for record in records if record.endpoint.endswith("completions")} == {"alive"}
    assert all(record.decision is None or replay(record.decision) for record in records)


async def test_an_engine_that_hangs_is_given_up_after_its_time(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    route(gateway, engine, first_byte_timeout_s=0.2, stall_timeout_s=0.2)
    await ready(gateway, eventually)
    await engine.set(hang_on_text="hang")
    body = json.dumps({**WORDS, "messages": [{"role": "user", "content": "hang"}]}).encode()
    with gateway.wire() as wire:
        assert wire.ask(post(body)).status == 503
    await engine.set(hang_on_text="")
    await engine.set(hang_after_tokens=2)
    with gateway.wire() as wire:
        response = wire.ask(post(json.dumps({**WORDS, "stream": True}).encode()))
    assert b'"code":"truncated"' in response.body
    await eventually(lambda: is_idle(engine), within_s=5)


async def test_a_connection_that_the_engine_closed_is_retried_once_on_a_fresh_one(
    served: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    await engine.set(close_keepalive_on_reuse=True)
    with served.wire() as wire:
        for _ in range(5):
            assert wire.ask(post(json.dumps(ASK).encode())).status == 200
    records = await journal(served, eventually, 5)
    assert [record.attempts for record in records] == [1, 2, 2, 2, 2]
    assert (await engine.seen())["counters"]["served"] == 5, "each was produced once"


async def test_an_engine_that_closes_after_each_reply_costs_no_request(
    served: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    await engine.set(close_keepalive_after_reply=True)
    async with served.client() as client:
        for _ in range(30):
            assert (await client.chat.completions.create(**ASK)).choices
    assert {record.outcome for record in await journal(served, eventually, 30)} == {"complete"}
    assert (await engine.seen())["counters"]["served"] == 30


# Clients that leave.


SLOW = {"token_interval_s": 0.02, "tokens": 5000}
PROMPT = {"model": MODEL, "prompt": "x", "max_tokens": 5000}


@pytest.mark.parametrize(
    ("knobs", "path", "ask", "status"),
    [
        pytest.param(SLOW, "/v1/chat/completions", {**WORDS, "stream": True}, 200, id="in the middle of a stream"),
        pytest.param({"prefill_s": 30.0}, "/v1/completions", {**PROMPT, "stream": True}, 499, id="before a token"),
        pytest.param(SLOW, "/v1/completions", PROMPT, 499, id="while an answer is produced"),
    ],
)
async def test_a_client_that_leaves_frees_the_engine(
    served: Gateway,
    engine: FakeEngine,
    eventually: Eventually,
    knobs: dict[str, Any],
    path: str,
    ask: dict[str, Any],
    status: int,
) -> None:
    await engine.set(**knobs)
    with served.wire() as wire:
        wire.send(post(json.dumps(ask).encode(), path=path))
        if status == 200:
            assert b"200 OK" in wire.read_some()
        await eventually(lambda: _running(engine, 1))
    await eventually(lambda: is_idle(engine), within_s=10)
    [record] = await journal(served, eventually, 1)
    assert (record.outcome, record.status) == ("client_gone", status)
    assert record.usage_source == "estimated"


async def _running(engine: FakeEngine, count: int) -> bool:
    return (await engine.seen())["counters"]["running"] == count


# Caps, queue, choice.


async def test_more_than_the_cap_waits_and_more_than_the_queue_is_refused(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually, connections: ExitStack
) -> None:
    route(gateway, engine, max_in_flight=2, max_queued=3, retry_after_s=7)
    await ready(gateway, eventually)
    await engine.set(hang_after_tokens=0)
    wires = [connections.enter_context(gateway.wire()) for _ in range(5)]
    for number, wire in enumerate(wires):
        wire.send(post(json.dumps({**WORDS, "max_tokens": 1, "user": str(number)}).encode()))
    # Asked on another connection, the sixth finds the queue full only once the five are in it.
    refused = await eventually(lambda: _refused(gateway))
    assert refused == ("7", True)
    await eventually(lambda: _running(engine, 2))
    assert (await engine.seen())["counters"]["waiting"] == 0, "they wait here, not in the engine"
    await engine.set(hang_after_tokens=None)
    assert [wire.response().status for wire in wires] == [200] * 5
    connections.close()
    bodies = [json.loads(seen["body"]) for seen in (await engine.seen())["requests"]]
    assert sorted(body["user"] for body in bodies if "user" in body) == ["0", "1", "2", "3", "4"]


def _refused(gateway: Gateway) -> tuple[str, bool] | None:
    with gateway.wire() as wire:
        wire.socket.settimeout(0.2)
        try:
            response = wire.ask(post(json.dumps(WORDS).encode()))
        except TimeoutError:
            return None
    return (response.headers["retry-after"], b'"code":"overloaded"' in response.body)


async def test_waiting_for_a_seat_has_an_end(gateway: Gateway, engine: FakeEngine, eventually: Eventually) -> None:
    route(gateway, engine, max_in_flight=1, queue_timeout_s=0.1)
    await ready(gateway, eventually)
    await engine.set(hang_after_tokens=0)
    with gateway.wire() as first, gateway.wire() as second:
        first.send(post(json.dumps(WORDS).encode()))
        await eventually(lambda: _running(engine, 1))
        response = second.ask(post(json.dumps(WORDS).encode()))
        assert response.status == 503
        assert b"waited 0.1 s" in response.body


async def test_a_client_that_leaves_the_queue_frees_its_place(
    gateway: Gateway, engine: FakeEngine, eventually: Eventually
) -> None:
    route(gateway, engine, max_in_flight=1, max_queued=1)
    await ready(gateway, eventually)
    await engine.set(hang_after_tokens=0)
    with gateway.wire() as first:
        first.send(post(json.dumps(WORDS).encode()))
        await eventually(lambda: _running(engine, 1))
        for _ in range(3):
            with gateway.wire() as leaving:
                leaving.send(post(json.dumps(WORDS).encode()))
                await eventually(lambda: _refused(gateway))
            gone = len(gateway.records())
            await eventually(lambda gone=gone: any(r.outcome == "client_gone" for r in gateway.records()[gone - 1 :]))
        await engine.set(hang_after_tokens=None)
        assert first.response().status == 200
    assert all(record.replica == "" for record in gateway.records() if record.outcome == "client_gone")


async def test_requests_go_to_the_replica_with_the_fewest_and_choices_replay(
    gateway: Gateway, eventually: Eventually
) -> None:
    async with FakeEngine(token_interval_s=0.01) as one, FakeEngine(token_interval_s=0.01) as two:
        gateway.publish(deployment(replica(one.address, "one"), replica(two.address, "two")))
        await ready(gateway, eventually)
        async with gateway.client() as client:
            await asyncio.gather(*(client.chat.completions.create(**WORDS, max_tokens=5) for _ in range(40)))
    records = await journal(gateway, eventually, 40)
    counts = [sum(record.replica == name for record in records) for name in ("one", "two")]
    assert min(counts) >= 15
    assert all(record.decision is not None and replay(record.decision) for record in records)
    assert max(c.in_flight for record in records if record.decision for c in record.decision.candidates) > 0
