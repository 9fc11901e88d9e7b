"""Between OpenAI's wire format and llama-server's: what is sent, what is kept back, what is put together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import load_program

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
wire: Any = load_program("llamacpp_wire")
BadRequest: type[Exception] = load_program("http1").BadRequest


def asked(path: str = CHAT, **fields: Any) -> Any:
    said = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    return wire.parse_ask(json.dumps({"model": "m", **said, **fields}).encode(), path, "m", tools=True)


def sent(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    return json.loads(asked(path, **fields).body)


def refused(body: bytes, path: str = CHAT, *, tools: bool = True) -> Any:
    with pytest.raises(BadRequest) as caught:
        wire.parse_ask(body, path, "m", tools=tools)
    return caught.value


@pytest.mark.parametrize("stream", [None, False, True])
def test_everything_is_asked_as_a_stream_with_progress_and_usage(stream: bool | None) -> None:
    body = sent(stream=stream)
    assert (body["stream"], body["return_progress"], body["stream_options"]) == (True, True, {"include_usage": True})
    assert asked(stream=stream).stream is bool(stream)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_completion_tokens": 3, "tools": [{}], "logprobs": True, "response_format": {"type": "text"}}),
        (COMPLETION, {"max_tokens": 3, "stop": ["a"], "temperature": 0, "min_p": 0.1}),
    ],
)
def test_fields_that_we_know_are_sent_as_they_are(path: str, fields: dict[str, Any]) -> None:
    assert sent(path, **fields).items() >= fields.items()


@pytest.mark.parametrize("name", ["id_slot", "n_predict", "grammar", "lora", "n_discard", "cache_prompt", "samplers"])
def test_fields_that_only_the_engine_knows_are_not_sent(name: str) -> None:
    assert name not in sent(**{name: 1})


def test_a_null_is_not_sent() -> None:
    assert "temperature" not in sent(temperature=None)


def test_the_repetition_penalty_has_another_name_there() -> None:
    body = sent(repetition_penalty=1.3)
    assert (body.get("repeat_penalty"), "repetition_penalty" in body) == (1.3, False)


@given(st.integers())
def test_every_seed_becomes_one_that_is_drawn_from(seed: int) -> None:
    assert 0 <= sent(seed=seed)["seed"] < 2**32 - 1


def test_small_seeds_stay_what_they_are() -> None:
    assert sent(seed=7)["seed"] == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 2), ("n", True), ("best_of", 2), ("echo", True), ("suffix", "x"), ("functions", [{}]), ("audio", {})],
)
def test_what_the_engine_would_ignore_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(json.dumps({"model": "m", "messages": [], name: value}).encode())
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


def test_tools_are_refused_where_the_template_has_no_place_for_them() -> None:
    body = {"model": "m", "messages": []}
    error = refused(json.dumps({**body, "tools": [{}]}).encode(), tools=False)
    assert (error.param, "template" in str(error)) == ("tools", True)
    assert refused(json.dumps({**body, "tool_choice": "required"}).encode(), tools=False).param == "tool_choice"
    wire.parse_ask(json.dumps({**body, "tools": [], "tool_choice": "auto"}).encode(), CHAT, "m", tools=False)


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "http://x"}}, {"type": "file"}, {}, "a", 1]
)
def test_parts_that_are_not_text_are_refused_by_their_place(part: Any) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}, part]}]
    error = refused(json.dumps({"model": "m", "messages": messages}).encode())
    assert (error.status, error.param) == (400, "messages[1].content")


@pytest.mark.parametrize("content", [None, "a", [], [{"type": "text", "text": "a"}]])
def test_text_passes_however_it_is_given(content: Any) -> None:
    messages = [{"role": "assistant", "content": content}]
    assert sent(messages=messages)["messages"] == messages


def test_logprobs_of_a_raw_prompt_are_refused() -> None:
    assert refused(b'{"model": "m", "prompt": "a", "logprobs": 0}', COMPLETION).param == "logprobs"


@pytest.mark.parametrize(("name", "value"), [("n", 1), ("echo", False), ("suffix", ""), ("best_of", None)])
def test_a_field_that_asks_for_nothing_is_no_reason_to_refuse(name: str, value: Any) -> None:
    assert name not in sent(COMPLETION, **{name: value})


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model": "m", "model": "m"}', 400, None),
        (b"{}", 400, "model"),
        (b'{"model": "other", "messages": []}', 404, "model"),
        (b'{"model": "m", "stream": 1}', 400, "stream"),
        (b'{"model": "m", "stream_options": {}}', 400, "stream_options"),
        (b'{"model": "m", "stream": true, "stream_options": {"include_usage": 1}}', 400, "stream_options"),
        (b'{"model": "m", "seed": 1.5}', 400, "seed"),
    ],
)
def test_a_request_that_is_none_is_refused(body: bytes, status: int, param: str | None) -> None:
    error = refused(body)
    assert (error.status, error.param) == (status, param)


@given(st.lists(st.sampled_from([b"data: 1\n\n", b"data: [DONE]\n\n", b":\n\n", b'data: {"a":"\\n"}\n\n'])), st.data())
def test_events_are_the_same_however_their_bytes_are_cut(blocks: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(blocks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    events, got = wire.Events(), list[bytes]()
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += events.feed(stream[begin:end])
    assert got == [block[6:-2] for block in blocks if block.startswith(b"data")]


@given(st.text())
def test_no_text_of_a_model_passes_for_progress_usage_or_an_error(text: str) -> None:
    event = json.dumps({"choices": [{"delta": {"content": text}}]}, separators=(",", ":")).encode()
    assert not (wire.is_progress(event) or wire.is_usage(event) or wire.is_error(event))


def chunk(choice: dict[str, Any] | None = None, **others: Any) -> bytes:
    common = {"id": "chatcmpl-1", "created": 5, "model": "m", "object": "chat.completion.chunk"}
    return json.dumps({**common, "choices": [{"index": 0, **choice}] if choice else [], **others}).encode()


def whole(*events: bytes, chat: bool = True) -> dict[str, Any]:
    collected = wire.Whole(chat=chat)
    for event in events:
        collected.add(event)
    return collected.answer()


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
END = (chunk({"delta": {}, "finish_reason": "stop"}), chunk(usage=USAGE))


@given(st.lists(st.text()))
def test_a_whole_answer_is_its_pieces_joined(pieces: list[str]) -> None:
    answer = whole(
        chunk({"delta": {"role": "assistant", "content": None}}),
        *(chunk({"delta": {"content": piece}}) for piece in pieces),
        *END,
    )
    assert answer == {
        "id": "chatcmpl-1",
        "created": 5,
        "model": "m",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "".join(pieces)},
            }
        ],
        "usage": USAGE,
    }


def test_reasoning_stands_beside_the_content() -> None:
    [choice] = whole(chunk({"delta": {"reasoning_content": "hm"}}), chunk({"delta": {"reasoning_content": "m"}}), *END)[
        "choices"
    ]
    assert choice["message"] == {"role": "assistant", "content": "", "reasoning_content": "hmm"}


def test_tool_calls_are_put_together_by_their_index() -> None:
    def part(index: int, **call: Any) -> bytes:
        return chunk({"delta": {"tool_calls": [{"index": index, **call}]}})

    [choice] = whole(
        part(0, id="a", type="function", function={"name": "f", "arguments": "{"}),
        part(1, id="b", type="function", function={"name": "g", "arguments": ""}),
        part(0, function={"arguments": '"x":1}'}),
        part(1, function={"arguments": "{}"}),
        chunk({"delta": {}, "finish_reason": "tool_calls"}),
        chunk(usage=USAGE),
    )["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_a_continuation_has_its_text_and_its_logprobs() -> None:
    [choice] = whole(
        chunk({"text": "a", "logprobs": {"content": [{"token": "a"}]}}),
        chunk({"text": "b", "logprobs": {"content": [{"token": "b"}]}, "finish_reason": "length"}),
        chunk(usage=USAGE),
        chat=False,
    )["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


@pytest.mark.parametrize("events", [(), (END[0],), (END[1],)])
def test_an_answer_that_did_not_end_is_none(events: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="before the answer"):
        whole(*events)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (
            b'{"error":{"code":400,"message":"request (9 tokens) exceeds","type":"exceed_context_size_error"}}',
            "request (9 tokens) exceeds",
            "context_length_exceeded",
        ),
        (b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}', "no", None),
        (b"<html>", "the engine answered 400: <html>", None),
        (b'{"error":1}', 'the engine answered 400: {"error":1}', None),
    ],
)
def test_the_engines_errors_get_the_shape_that_clients_expect(body: bytes, message: str, code: str | None) -> None:
    error = wire.refusal(400, body)
    assert (error.status, str(error), error.code) == (400, message, code)
