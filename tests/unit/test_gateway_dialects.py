"""Dialects through the gateway: routes, keys, streams, errors and the journal, with an engine that the test plays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dialect_streams import Chat, call_part, read_message, read_response, sse
from gateway_fakes import (
    DONE,
    LAST_CHUNK,
    MODEL,
    SECRET,
    STREAM_HEAD,
    FakeTransport,
    World,
    answer,
    chat,
    chunked,
    deployment,
    event,
    post,
    split_responses,
)

from modelyard.gateway.client import ClientConnection
from modelyard.records.topology import Prices

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
CHAT = "/v1/chat/completions"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def ask(path: str, **fields: Any) -> bytes:
    """A small request in the dialect of `path`."""
    body: dict[str, Any] = {"model": MODEL, **fields}
    if path == MESSAGES:
        body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **body}
    else:
        body = {"input": "hi", **body}
    return post(json.dumps(body).encode(), path=path)


def begin(world: World, request: bytes) -> tuple[ClientConnection, FakeTransport, Any, FakeTransport]:
    """The request at the engine: both connections and what they wrote."""
    engine, engine_side = world.engine()
    client, client_side = world.client()
    client.data_received(request)
    return client, client_side, engine, engine_side


def asked(engine_side: FakeTransport) -> tuple[str, dict[str, Any]]:
    head, _, body = engine_side.take().partition(b"\r\n\r\n")
    return head.decode().split(" ")[1], json.loads(body)


def whole(value: dict[str, Any], status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def stream(*events: bytes) -> bytes:
    return STREAM_HEAD + chunked(*events) + LAST_CHUNK


def test_a_message_is_asked_as_a_chat_and_answered_as_a_message(world: World) -> None:
    _, client_side, engine, engine_side = begin(world, ask(MESSAGES))
    path, body = asked(engine_side)
    assert path == CHAT and body["model"] == "e" and body["messages"] == [{"role": "user", "content": "hi"}]
    engine.data_received(answer("hello", prompt_tokens=3, completion_tokens=1))
    [(status, headers, told)] = split_responses(client_side.take())
    value = json.loads(told)
    assert status == 200 and headers["request-id"] == headers["x-request-id"]
    assert value["content"] == [{"type": "text", "text": "hello"}] and value["model"] == MODEL
    assert value["usage"]["input_tokens"] == 3 and value["id"].startswith("msg_")
    [record] = world.records()
    assert (record.endpoint, record.outcome, record.prompt_tokens, record.completion_tokens) == (
        MESSAGES,
        "complete",
        3,
        1,
    )
    assert record.usage_source == "engine" and record.bytes_out > 0


def test_a_message_stream_is_told_in_events_and_journalled_exactly(world: World) -> None:
    made = Chat([{"reasoning": "hm"}, {"content": "hel"}, {"content": "lo"}, call_part(0, "{}", "f")], "tool_calls")
    tool = {"name": "f", "input_schema": {"type": "object"}}
    _, client_side, engine, engine_side = begin(world, ask(MESSAGES, stream=True, tools=[tool]))
    assert asked(engine_side)[1]["stream_options"] == {"include_usage": True}
    engine.data_received(stream(*made.events()))
    [(_, headers, told)] = split_responses(client_side.take())
    assert headers["content-type"].startswith("text/event-stream") and "request-id" in headers
    message = read_message(told)
    assert message.complete and message.texts("text", "text") == "hello" and message.stop_reason == "tool_use"
    [record] = world.records()
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == made.usage[:2] + made.usage[2:]
    assert record.stream and record.error == "" and record.endpoint == MESSAGES


def test_a_response_stream_is_told_in_events(world: World) -> None:
    made = Chat([{"content": "hello"}])
    _, client_side, engine, _ = begin(world, ask(RESPONSES, stream=True))
    engine.data_received(stream(*made.events()))
    [(_, _, told)] = split_responses(client_side.take())
    response = read_response(told)
    assert response.final is not None and response.final["output"][0]["content"][0]["text"] == "hello"
    assert world.records()[0].endpoint == RESPONSES


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_an_engine_that_dies_in_the_middle_is_told_as_an_error_event(world: World, path: str) -> None:
    _, client_side, engine, engine_side = begin(world, ask(path, stream=True))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    engine_side.lose()
    data = client_side.take()
    [(_, _, told)] = split_responses(data)
    found = read_message(told) if path == MESSAGES else read_response(told)
    assert "before it was complete" in found.error
    assert b"[DONE]" not in told
    [record] = world.records()
    assert record.outcome == "truncated" and record.usage_source == "estimated" and record.completion_tokens == 1


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_an_engine_that_dies_before_the_first_content_is_a_plain_error(world: World, path: str) -> None:
    _, client_side, engine, engine_side = begin(world, ask(path, stream=True))
    engine.data_received(STREAM_HEAD + chunked(sse({"choices": [{"delta": {"role": "assistant", "content": ""}}]})))
    engine_side.lose()
    [(status, headers, told)] = split_responses(client_side.take())
    assert status == 503 and "retry-after" in headers
    assert json.loads(told)["error"]["message"]


def test_a_client_that_leaves_a_translated_stream_stops_the_engine(world: World) -> None:
    _, client_side, engine, engine_side = begin(world, ask(MESSAGES, stream=True))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    client_side.lose()
    assert engine_side.aborted
    assert world.records()[0].outcome == "client_gone"


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (post(b"{", path=MESSAGES), 400, "invalid_request_error"),
        (post(b"{}", path=MESSAGES), 400, "invalid_request_error"),
        (post(b"{}", path=MESSAGES, secret="my_0123456789ab_wrong"), 401, "authentication_error"),
        (ask(MESSAGES).replace(b'"model": "m"', b'"model": "x"'), 404, "not_found_error"),
        (post(b"", "content-encoding: gzip", path=MESSAGES), 415, "invalid_request_error"),
    ],
)
def test_every_refusal_of_a_message_has_anthropics_shape(world: World, request_: bytes, status: int, kind: str) -> None:
    client, client_side = world.client()
    client.data_received(request_)
    [(found, headers, body)] = split_responses(client_side.take())
    value = json.loads(body)
    assert (found, value["type"], value["error"]["type"]) == (status, "error", kind)
    assert value["request_id"] == headers["request-id"] and value["error"]["message"]


def test_a_full_queue_is_overloaded_in_anthropics_words(tmp_path: Path) -> None:
    world = World(tmp_path, shape=deployment(open=False, reason="it is starting"))
    client, client_side = world.client()
    client.data_received(ask(MESSAGES))
    [(status, headers, body)] = split_responses(client_side.take())
    assert (status, json.loads(body)["error"]["type"]) == (503, "overloaded_error")
    assert headers["retry-after"]


def with_key(*lines: str) -> bytes:
    return ask(MESSAGES).replace(f"authorization: Bearer {SECRET}".encode(), "\r\n".join(lines).encode())


def test_a_key_may_come_as_anthropics_clients_send_it(world: World) -> None:
    _, _, _, engine_side = begin(world, with_key(f"x-api-key: {SECRET}", "anthropic-version: 2023-06-01"))
    assert asked(engine_side)[0] == CHAT


def test_two_keys_are_one_too_many(world: World) -> None:
    client, client_side = world.client()
    client.data_received(with_key(f"x-api-key: {SECRET}", f"authorization: Bearer {SECRET}"))
    [(status, _, body)] = split_responses(client_side.take())
    assert status == 401 and "one key, once" in json.loads(body)["error"]["message"]


def test_an_engine_with_the_endpoint_gets_the_request_as_it_is(tmp_path: Path) -> None:
    world = World(tmp_path, shape=deployment(endpoints=(CHAT, MESSAGES)))
    _, client_side, engine, engine_side = begin(world, ask(MESSAGES, stream=True))
    path, body = asked(engine_side)
    assert path == MESSAGES and body["model"] == "e" and "stream_options" not in body
    usage = {"input_tokens": 3, "output_tokens": 4}
    events = (
        b"event: message_start\n" + sse({"type": "message_start", "message": {"usage": usage}}),
        b"event: message_delta\n" + sse({"type": "message_delta", "delta": {}, "usage": usage}),
        b"event: message_stop\n" + sse({"type": "message_stop"}),
    )
    engine.data_received(stream(*events))
    [(_, _, told)] = split_responses(client_side.take())
    assert told == b"".join(events)
    [record] = world.records()
    assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (3, 4, "engine")


def test_an_engine_without_an_endpoint_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, shape=deployment(engine="openvino"))
    client, client_side = world.client()
    client.data_received(post(json.dumps({"model": MODEL, "input": "a"}).encode(), path="/v1/embeddings"))
    [(status, _, body)] = split_responses(client_side.take())
    assert status == 501 and "openvino" in json.loads(body)["error"]["message"]
    assert world.records()[0].error == "endpoint_not_served"


def test_usage_of_embeddings_is_journalled(tmp_path: Path) -> None:
    world = World(tmp_path, shape=deployment(endpoints=("/v1/embeddings",)))
    request = post(json.dumps({"model": MODEL, "input": "a"}).encode(), path="/v1/embeddings")
    _, client_side, engine, engine_side = begin(world, request)
    assert asked(engine_side) == ("/v1/embeddings", {"model": "e", "input": "a"})
    engine.data_received(whole({"data": [], "usage": {"prompt_tokens": 6, "total_tokens": 6}}))
    assert split_responses(client_side.take())[0][0] == 200
    [record] = world.records()
    assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (6, 0, "engine")


def test_a_refusal_of_the_engine_names_the_clients_field(world: World) -> None:
    _, client_side, engine, _ = begin(world, ask(MESSAGES, stop_sequences=["x"]))
    error = {"message": "stop is too short", "param": "stop", "code": "bad"}
    engine.data_received(whole({"error": error}, "400 Bad Request"))
    [(status, _, body)] = split_responses(client_side.take())
    assert status == 400 and json.loads(body)["error"]["message"] == "stop_sequences is too short"


def test_a_call_that_has_no_words_in_the_dialect_is_said_so_and_paid_for(tmp_path: Path) -> None:
    prices = Prices(currency="EUR", input_pico=10, cached_input_pico=1, output_pico=100)
    world = World(tmp_path, shape=deployment(prices=prices))
    _, client_side, engine, _ = begin(world, ask(MESSAGES))
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{x"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    usage = {"prompt_tokens": 30, "completion_tokens": 4}
    engine.data_received(whole({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}))
    [(status, _, body)] = split_responses(client_side.take())
    assert status == 502 and "no JSON object" in json.loads(body)["error"]["message"]
    [record] = world.records()
    assert record.error == "tool_arguments_invalid"
    told = (record.prompt_tokens, record.completion_tokens, record.usage_source, record.cost_pico)
    assert told == (30, 4, "engine", 30 * 10 + 4 * 100), "the engine has done the work"


@pytest.mark.parametrize(
    ("code", "recorded"),
    [
        ("context_length_exceeded", "context_length_exceeded"),
        (400, "400"),
        ("x" * 65, "engine_refused"),
        ("a b\u202e", "engine_refused"),
        ("", "engine_refused"),
        (None, "engine_refused"),
    ],
)
def test_only_a_short_plain_code_of_an_engine_is_taken_into_the_record(world: World, code: Any, recorded: str) -> None:
    _, client_side, engine, _ = begin(world, post(chat()))
    error = {"message": "no", "code": code, "param": "p" * 300}
    engine.data_received(whole({"error": error}, "400 Bad Request"))
    [(status, _, body)] = split_responses(client_side.take())
    told = json.loads(body)["error"]
    assert (status, told["code"], len(told["param"])) == (400, recorded, 256)
    assert world.records()[0].error == recorded


def test_a_whole_answer_that_fails_its_check_says_so_in_a_header_and_the_journal(world: World) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
    _, client_side, engine, _ = begin(world, post(chat(response_format=form)))
    engine.data_received(answer("{}"))
    [(status, headers, _)] = split_responses(client_side.take())
    assert status == 200 and "x-modelyard-answer-check" not in headers  # no finish_reason: nothing was promised
    value = {"choices": [{"message": {"role": "assistant", "content": "{}"}, "finish_reason": "stop"}], "usage": None}
    _, client_side, engine, _ = begin(world, post(chat(response_format=form)))
    engine.data_received(whole(value))
    [(status, headers, body)] = split_responses(client_side.take())
    assert status == 200 and headers["x-modelyard-answer-check"] == "answer_breaks_schema"
    assert json.loads(body) == value
    assert [record.error for record in world.records()] == ["", "answer_breaks_schema"]


def test_a_stream_that_fails_its_check_is_journalled(world: World) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    _, client_side, engine, _ = begin(world, post(chat(stream=True, tools=tools)))
    made = Chat([call_part(0, "{}", "g")], "tool_calls")
    engine.data_received(stream(*made.events()))
    assert split_responses(client_side.take())[0][2].endswith(DONE)
    [record] = world.records()
    assert (record.outcome, record.error, record.completion_tokens) == ("complete", "tool_call_unknown", made.usage[1])


def test_thoughts_of_an_engine_that_tells_them_have_both_names(tmp_path: Path) -> None:
    world = World(tmp_path, shape=deployment(reasoning_field="reasoning"))
    _, client_side, engine, _ = begin(world, post(chat(stream=True)))
    engine.data_received(stream(*Chat([{"reasoning": "hm"}, {"content": "a"}]).events()))
    [(_, _, told)] = split_responses(client_side.take())
    assert b'"reasoning":"hm","reasoning_content":"hm"' in told
    _, client_side, engine, _ = begin(world, post(chat()))
    message = {"role": "assistant", "content": "a", "reasoning": "hm"}
    engine.data_received(whole({"choices": [{"message": message}], "usage": None}))
    [(_, _, body)] = split_responses(client_side.take())
    assert json.loads(body)["choices"][0]["message"]["reasoning_content"] == "hm"


def test_unknown_fields_of_a_dialect_are_named_in_a_header(world: World) -> None:
    _, client_side, engine, _ = begin(world, ask(RESPONSES, include=[], text={"verbosity": "low"}))
    engine.data_received(answer("a"))
    [(_, headers, _)] = split_responses(client_side.take())
    assert headers["x-modelyard-ignored-fields"] == "include, text.verbosity"
