"""The OpenAI wire of the OpenVINO engine server: what is accepted, what is refused and by which name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from programs import load_program


@pytest.fixture(scope="module")
def wire() -> Any:
    return load_program("openai_wire")


def chat(wire: Any, **fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return wire.parse_ask(json.dumps(body).encode(), chat=True, served_name="m")


def completion(wire: Any, **fields: Any) -> Any:
    return wire.parse_ask(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), chat=False, served_name="m")


def refusal(wire: Any, chat_fields: dict[str, Any]) -> Any:
    with pytest.raises(wire.BadRequest) as caught:
        chat(wire, **chat_fields)
    return caught.value


def test_text_parts_are_joined(wire: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat(wire, messages=[{"role": "user", "content": parts}])
    assert ask.prompt == {"messages": [{"role": "user", "content": "ab"}]}


def test_prompts_may_be_text_one_text_in_a_list_or_token_ids(wire: Any) -> None:
    assert completion(wire).prompt == {"text": "hi"}
    assert completion(wire, prompt=["hi"]).prompt == {"text": "hi"}
    assert completion(wire, prompt=[1, 2]).prompt == {"tokens": [1, 2]}
    assert completion(wire, prompt=[7]).prompt == {"tokens": [7]}
    assert completion(wire, prompt=[[7]]).prompt == {"tokens": [7]}


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], None, 5, [True], {}])
def test_other_prompts_are_refused_by_name(wire: Any, prompt: Any) -> None:
    with pytest.raises(wire.BadRequest) as caught:
        completion(wire, prompt=prompt)
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_an_unknown_model_is_a_404(wire: Any) -> None:
    error = refusal(wire, {"model": "other"})
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"1": 5}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("echo", True),
        ("modalities", ["text", "audio"]),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(wire: Any, name: str, value: Any) -> None:
    error = refusal(wire, {name: value})
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


def test_values_that_ask_for_nothing_are_accepted(wire: Any) -> None:
    harmless = {"n": 1, "logprobs": False, "tools": [], "tool_choice": "none", "logit_bias": {}, "echo": None}
    assert chat(wire, **harmless).sampling == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -1),
        ("frequency_penalty", 3),
        ("repetition_penalty", 0),
        ("top_k", 1.5),
        ("seed", 2**70),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_completion_tokens", -1),
        ("stop", ""),
        ("stop", [1]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 257),
        ("stream", "yes"),
        ("messages", []),
        ("messages", "hi"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
    ],
)
def test_values_out_of_bounds_name_their_field(wire: Any, name: str, value: Any) -> None:
    error = refusal(wire, {name: value})
    assert (error.status, error.param) == (400, name)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
    ],
)
def test_a_bad_message_is_refused_with_its_place(wire: Any, message: Any, param: str) -> None:
    assert refusal(wire, {"messages": [message]}).param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"model": "m", "model": "m"}',
        b'{"temperature": NaN}',
        b"\xff",
        b"[" * 200_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_honest_json_object_are_refused(wire: Any, body: bytes) -> None:
    with pytest.raises(wire.BadRequest) as caught:
        wire.parse_ask(body, chat=True, served_name="m")
    assert caught.value.status == 400


def test_max_completion_tokens_wins_in_a_chat(wire: Any) -> None:
    assert chat(wire, max_tokens=5, max_completion_tokens=3).max_tokens == 3
    assert chat(wire, max_tokens=5).max_tokens == 5
    assert chat(wire).max_tokens is None


def test_response_formats_become_schemas(wire: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(chat(wire, response_format=named).schema) == schema
    assert json.loads(chat(wire, response_format={"type": "json_object"}).schema) == {"type": "object"}
    assert chat(wire, response_format={"type": "text"}).schema is None


def test_a_schema_that_is_a_depth_bomb_is_refused(wire: Any) -> None:
    schema: dict[str, Any] = {}
    for _ in range(wire.MAX_SCHEMA_DEPTH + 1):
        schema = {"items": schema}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert refusal(wire, {"response_format": named}).param == "response_format"


def test_a_schema_may_refer_only_to_itself(wire: Any) -> None:
    def formatted(reference: str) -> Any:
        schema = {"type": "array", "items": [{"$ref": reference}]}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}

    assert chat(wire, **formatted("#/$defs/a")).schema
    assert refusal(wire, formatted("http://example.org/schema")).param == "response_format"


def test_include_usage_needs_a_stream(wire: Any) -> None:
    options = {"include_usage": True}
    assert chat(wire, stream=True, stream_options=options).include_usage
    assert refusal(wire, {"stream_options": options}).param == "stream_options"


def payload(event: bytes) -> Any:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return json.loads(event[6:])


@pytest.mark.parametrize("text", ["plain", 'quo"te\\', "line\nbreak\r\u2028", "漢字 🙂", "\x00\x1b"])
def test_the_prepared_event_is_the_json_that_a_whole_encoder_would_write(wire: Any, text: str) -> None:
    event = payload(wire.Answer(chat(wire), "m").text(text))
    assert event["object"] == "chat.completion.chunk"
    assert event["choices"] == [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}]
    event = payload(wire.Answer(completion(wire), "m").text(text))
    assert event["object"] == "text_completion"
    assert event["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]


def test_all_events_of_a_stream_share_one_identity(wire: Any) -> None:
    answer = wire.Answer(chat(wire), 'na"me')
    events = [answer.opening(), answer.text("x"), answer.closing("stop"), answer.usage(wire.Usage(3, 2, 1))]
    decoded = [payload(event) for event in events]
    assert len({(event["id"], event["created"], event["model"]) for event in decoded}) == 1
    assert decoded[0]["choices"][0]["delta"]["role"] == "assistant"
    assert decoded[2]["choices"][0]["finish_reason"] == "stop"
    assert decoded[3]["choices"] == []
    assert decoded[3]["usage"]["total_tokens"] == 5
    assert decoded[3]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
