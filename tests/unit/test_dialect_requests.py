"""Requests in a dialect: what reaches the engine, and what is refused by which name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.gateway.dialects.dialect import Sending
from modelyard.gateway.dialects.registry import READERS
from modelyard.gateway.dialects.ways import spoken
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.routes import ROUTES
from modelyard.records.topology import Deployment, Policy

TOOL = {"name": "weather", "description": "look", "input_schema": {"type": "object"}}
FUNCTION = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CHAT = ("/v1/chat/completions", "/v1/completions")


def deployment(**changes: Any) -> Deployment:
    return Deployment(**{"name": "m", "engine_model": "e", "context_tokens": 0, "created_at": 1, **changes})


def send(endpoint: str, body: dict[str, Any], **changes: Any) -> Sending:
    asked = READERS[endpoint](json.dumps(body).encode(), "req_1")
    return spoken(asked, deployment(**changes))


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}


def sent(endpoint: str, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(send(endpoint, body, **changes).body)


def refusal(endpoint: str, body: dict[str, Any], **changes: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        send(endpoint, body, **changes)
    return caught.value


def test_every_reader_has_a_route_and_every_inference_route_a_reader() -> None:
    routes = {route.endpoint for route in ROUTES if route.kind == "inference"}
    assert routes == READERS.keys() | set(CHAT)


# Anthropic's messages.


def test_a_message_request_becomes_a_chat_request() -> None:
    body = message(
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"at": "Rom"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                    {"type": "text", "text": "and"},
                    {"type": "text", "text": "now?"},
                ],
            },
        ],
        stop_sequences=["END"],
        temperature=0.5,
        top_k=3,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    chat = sent("/v1/messages", body)
    assert chat == {
        "model": "e",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning": "hm",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"Rom"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "sun"},
            {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]},
        ],
        "max_tokens": 9,
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 3,
        "user": "u",
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "look", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
    }


def test_an_engine_that_speaks_messages_gets_the_checked_fields_and_nothing_else() -> None:
    content = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "new": 1}]
    body = message(messages=[{"role": "user", "content": content}], kv_transfer_params={"do": 1})
    sending = send("/v1/messages", body, endpoints=(*CHAT, "/v1/messages"))
    assert sending.endpoint == "/v1/messages"
    assert json.loads(sending.body) == {
        "model": "e",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }


def test_prompts_of_different_keys_are_kept_apart_at_an_engine_that_speaks_the_dialect_too() -> None:
    native: Any = {"endpoints": (*CHAT, "/v1/messages", "/v1/responses"), "cache_salt": True}
    salts = set[str]()
    for endpoint, body in (("/v1/messages", message()), ("/v1/responses", {"model": "m", "input": "hi"})):
        for key in ("a", "b"):
            asked = READERS[endpoint](json.dumps(body).encode(), "req_1")
            asked.parsed.key_id = key
            sending = spoken(asked, deployment(**native))
            assert sending.endpoint == endpoint
            salts.add(json.loads(sending.body)["cache_salt"])
    assert len(salts) == 2
    assert "cache_salt" not in sent("/v1/messages", message(cache_salt="mine"), endpoints=native["endpoints"])


def test_what_an_engine_must_not_have_is_kept_from_it_in_every_dialect() -> None:
    native: Any = {"endpoints": (*CHAT, "/v1/messages")}
    left_out = send("/v1/messages", message(top_k=3), **native, policy=Policy(stripped_fields=("top_k",)))
    assert left_out.endpoint == CHAT[0] and "top_k" not in json.loads(left_out.body)
    lowered = send("/v1/messages", message(max_tokens=99), **native, context_tokens=50)
    assert json.loads(lowered.body)["max_tokens"] == 49
    found = refusal("/v1/messages", message(stop_sequences=["x"]), **native, policy=Policy(refused_fields=("stop",)))
    assert found.param == "stop_sequences"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "m", "messages": [{"role": "user", "content": "x"}]}, "max_tokens", "max_tokens is missing"),
        (message(max_tokens=0), "max_tokens", ">= 1"),
        (message(temperature=3), "temperature", "<= 2"),
        (message(stop_sequences=["x"] * 17), "stop_sequences", "<= 16"),
        (message(messages=[]), "messages", "length >= 1"),
        (message(messages=[{"role": "assistant", "content": "I"}]), "messages", "going on from it"),
        (message(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools", "client's own tools"),
        (message(tools=[{**TOOL, "type": "bash_20250124"}]), "tools", "client's own tools"),
        (message(tools=[TOOL], tool_choice={"type": "tool"}), "tool_choice", "which tool"),
        (
            message(messages=[{"role": "user", "content": [{"type": "image", "source": {"url": "http://x/"}}]}]),
            "messages",
            "no address is ever fetched",
        ),
        (
            message(
                messages=[{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]
            ),
            "messages",
            "does not belong",
        ),
        (
            message(output_config={"format": {"type": "json_schema", "schema": {"$ref": "http://x/"}}}),
            "output_config.format",
            "output_config.format holds a remote $ref",
        ),
    ],
)
def test_what_is_wrong_with_a_message_request_is_named_in_its_own_words(
    body: dict[str, Any], param: str, words: str
) -> None:
    found = refusal("/v1/messages", body)
    assert (found.status, found.param) == (400, param)
    assert words in found.message


def test_a_tool_schema_may_not_nest_without_bound() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(70):
        schema = {"properties": {"a": schema}}
    assert refusal("/v1/messages", message(tools=[{**TOOL, "input_schema": schema}])).param == "tools"


def test_fields_that_mean_nothing_to_a_chat_are_named() -> None:
    body = message(thinking={"type": "enabled", "budget_tokens": 1024}, container="c")
    asked = READERS["/v1/messages"](json.dumps(body).encode(), "req_1")
    assert asked.stripped == {"thinking", "container"}
    refused = refusal("/v1/messages", body, policy=Policy(unknown_fields="refuse"))
    assert refused.param == "container" and refused.status == 400


def test_a_name_that_only_another_dialect_knows_takes_nothing_away() -> None:
    """`messages` is unknown to Responses, and what its chat request is made of."""
    body = {"model": "m", "input": "hi", "messages": "?"}
    assert sent("/v1/responses", body)["messages"] == [{"role": "user", "content": "hi"}]


def test_a_field_that_the_engine_cannot_have_is_refused_by_the_clients_name() -> None:
    found = refusal("/v1/messages", message(stop_sequences=["x"]), refused_fields=("stop",))
    assert found.param == "stop_sequences" and found.message.startswith("stop_sequences is not supported")


def test_tokens_of_messages_are_counted_over_tokenize() -> None:
    body = {key: value for key, value in message(system="s", tools=[TOOL]).items() if key != "max_tokens"}
    sending = send("/v1/messages/count_tokens", body, endpoints=(*CHAT, "/tokenize"))
    assert sending.endpoint == "/tokenize" and sending.speaker is not None
    value = json.loads(sending.body)
    assert [one["role"] for one in value["messages"]] == ["system", "user"] and len(value["tools"]) == 1
    assert sending.speaker.whole(b'{"count":12,"tokens":[1]}')[0] == b'{"input_tokens":12}'


# OpenAI's responses.


def test_a_response_request_becomes_a_chat_request() -> None:
    body = {
        "model": "m",
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "id": "fc", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
            {"type": "message", "role": "user", "content": "and?"},
        ],
        "max_output_tokens": 9,
        "tools": [FUNCTION],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "w", "schema": {"type": "object"}, "strict": True}},
        "reasoning": {"effort": "low"},
        "store": False,
        "stream": True,
    }
    chat = sent("/v1/responses", body)
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assert chat == {
        "model": "e",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "reasoning": "hm",
                "reasoning_content": "hm",
                "content": None,
                "tool_calls": [{"id": "c1", **call}, {"id": "c2", **call}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
            {"role": "tool", "tool_call_id": "c2", "content": "rain"},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": "and?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 9,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "w", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize("name", ["store", "background", "previous_response_id", "conversation"])
def test_what_needs_a_memory_is_refused_and_says_what_to_do(name: str) -> None:
    value = "resp_1" if name in ("previous_response_id", "conversation") else True
    found = refusal("/v1/responses", {"model": "m", "input": "hi", name: value})
    assert (found.status, found.param) == (400, name)
    assert "keeps no response" in found.message and "whole conversation" in found.message


def test_an_engine_that_would_keep_responses_is_told_not_to() -> None:
    value = sent("/v1/responses", {"model": "m", "input": "hi"}, endpoints=(*CHAT, "/v1/responses"))
    assert value == {"model": "e", "input": "hi", "store": False}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "length >= 1"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "nothing but text"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input", "needs call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools", "client's own tools"),
        ({"text": {"format": {"type": "json_schema"}}}, "text", "needs its schema"),
        ({"truncation": "auto"}, "truncation", "nothing is dropped"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"prompt": {"id": "p"}}, "prompt", "send its text"),
    ],
)
def test_what_is_wrong_with_a_response_request_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    found = refusal("/v1/responses", {"model": "m", "input": "hi", **fields})
    assert (found.status, found.param) == (400, param)
    assert words in found.message


# What only an engine can answer.


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}),
        ("/v1/embeddings", {"input": [[1, 2], [3]]}),
        ("/v1/rerank", {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
        ("/tokenize", {"prompt": "a", "add_special_tokens": False}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}),
        ("/detokenize", {"tokens": [1, 2]}),
    ],
)
def test_what_an_engine_has_passes_and_what_it_lacks_is_said_with_its_name(
    endpoint: str, fields: dict[str, Any]
) -> None:
    assert sent(endpoint, {"model": "m", **fields}, endpoints=(endpoint,)) == {"model": "e", **fields}
    found = refusal(endpoint, {"model": "m", **fields}, engine="openvino")
    assert found.status == 501 and "openvino" in found.message and endpoint in found.message


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
def test_bounds_hold_for_them_too(endpoint: str, fields: dict[str, Any], param: str) -> None:
    found = refusal(endpoint, {"model": "m", **fields}, endpoints=(endpoint,))
    assert (found.status, found.param) == (400, param)


def test_a_dialect_that_neither_way_serves_is_501() -> None:
    found = refusal("/v1/messages", message(), endpoints=("/v1/embeddings",), engine="vllm")
    assert found.status == 501 and "vllm" in found.message
