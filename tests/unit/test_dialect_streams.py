"""Streams in Anthropic's and OpenAI's newer words: whatever an engine's chat stream is cut into, the same is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialect_streams import (
    DONE,
    Chat,
    call_part,
    chat_event,
    chats,
    read_message,
    read_response,
    splits,
    sse,
    through,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.gateway.dialects.anthropic_answer import MessageStream
from modelyard.gateway.dialects.native import MESSAGE_ENDS, RESPONSE_ENDS, NativeLane
from modelyard.gateway.dialects.responses_answer import Frame, ResponseStream
from modelyard.gateway.dialects.responses_request import ResponsesCall
from modelyard.gateway.dialects.rewrite import RewriteLane
from modelyard.gateway.lanes import BrokenStream


def messages_lane(*, chunked: bool = False) -> RewriteLane:
    return RewriteLane(MessageStream("msg_1", "m"), chunked=chunked)


def responses_lane() -> RewriteLane:
    return RewriteLane(ResponseStream(Frame("1", 1, ResponsesCall(model="m", input="hi"))), chunked=False)


def noisy(events: list[bytes], *, crlf: bool) -> bytes:
    """As other servers write it: comments in between, lines that end with CRLF."""
    data = b": a comment\n\n" + b": ping\n\n".join(events)
    return data.replace(b"\n", b"\r\n") if crlf else data


@given(chats(), st.booleans(), st.data())
@settings(max_examples=150)
def test_a_chat_stream_becomes_a_message_however_it_is_cut(chat: Chat, crlf: bool, data: st.DataObject) -> None:
    stream = noisy(chat.events(), crlf=crlf)
    lane = messages_lane()
    out = through(lane, data.draw(splits(stream)))
    assert out == through(messages_lane(), [stream])
    message = read_message(out)
    assert message.complete
    assert message.texts("text", "text") == chat.text
    assert message.texts("thinking", "thinking") == chat.thought
    told = [(block["name"], json.loads(block["partial"] or "{}")) for block in message.blocks if "input" in block]
    assert sorted(told, key=str) == sorted(((n, json.loads(a)) for n, a in chat.calls.values()), key=str)
    prompt, made, cached = chat.usage
    assert message.usage["input_tokens"] + message.usage["cache_read_input_tokens"] == prompt
    assert message.usage["cache_read_input_tokens"] == cached and message.usage["output_tokens"] == made
    assert message.stop_reason == {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[chat.finish]
    assert lane.usage is not None and lane.usage.prompt_tokens == prompt


@given(chats(), st.booleans(), st.data())
@settings(max_examples=150)
def test_a_chat_stream_becomes_a_response_however_it_is_cut(chat: Chat, crlf: bool, data: st.DataObject) -> None:
    stream = noisy(chat.events(), crlf=crlf)
    out = through(responses_lane(), data.draw(splits(stream)))
    assert out == through(responses_lane(), [stream])
    response = read_response(out)
    texts = [part["text"] for item in response.items("message") for part in item["content"]]
    assert "".join(texts) == chat.text
    thoughts = [part["text"] for item in response.items("reasoning") for part in item["content"]]
    assert "".join(thoughts) == chat.thought
    told = {(item["name"], item["arguments"]) for item in response.items("function_call")}
    assert told == set(chat.calls.values())
    assert response.final is not None
    prompt, made, cached = chat.usage
    assert response.final["usage"]["total_tokens"] == prompt + made
    assert response.final["usage"]["input_tokens_details"]["cached_tokens"] == cached
    assert response.final["status"] == ("incomplete" if chat.finish == "length" else "completed")


@given(chats(), st.data())
@settings(max_examples=100)
def test_a_stream_that_breaks_off_anywhere_is_never_told_as_whole(chat: Chat, data: st.DataObject) -> None:
    stream = b"".join(chat.events())
    cut = data.draw(st.integers(0, len(stream) - 1))
    if stream[cut:].strip() == b"":
        return
    for lane, read in ((messages_lane(), read_message), (responses_lane(), read_response)):
        out = lane.read(b"", [stream[:cut]], False)
        with pytest.raises(BrokenStream):
            lane.read(b"", [], True)
        told: Any = read(out + lane.failed("it broke", "truncated"))
        assert told.error == "it broke"


def test_an_error_of_the_engine_ends_a_stream_that_had_begun() -> None:
    for lane in (messages_lane(), responses_lane()):
        lane.read(b"", [chat_event({"content": "a"})], False)
        with pytest.raises(BrokenStream, match="reported an error"):
            lane.read(b"", [sse({"error": {"message": "cuda"}})], False)


def test_what_ends_a_stream_waits_until_the_engines_answer_is_whole() -> None:
    lane = messages_lane()
    out = lane.read(b"", [b"".join(Chat([{"content": "a"}]).events())], False)
    assert b"message_stop" not in out and b"text_delta" in out
    assert b"message_stop" in lane.read(b"", [], True)


def test_chunks_are_framed_and_ended() -> None:
    lane = messages_lane(chunked=True)
    out = lane.read(b"", [b"".join(Chat([{"content": "a"}]).events())], True)
    size, _, rest = out.partition(b"\r\n")
    assert rest[int(size, 16) :] == b"\r\n0\r\n\r\n"


def test_nothing_is_told_before_the_first_content() -> None:
    """Until then a failure is a plain error, and another replica may answer."""
    assert messages_lane().read(b"", [chat_event({"role": "assistant", "content": ""})], False) == b""
    assert responses_lane().read(b"", [chat_event({"role": "assistant", "content": ""})], False) == b""


def test_line_separators_of_unicode_never_stand_raw_in_an_event() -> None:
    out = through(messages_lane(), Chat([{"content": "a\u2028b\u2029c"}]).events())
    assert b"\xe2\x80" not in out
    assert read_message(out).texts("text", "text") == "a\u2028b\u2029c"


def test_an_empty_answer_has_an_empty_block() -> None:
    message = read_message(through(messages_lane(), Chat().events()))
    assert [block["type"] for block in message.blocks] == ["text"]
    assert len(read_response(through(responses_lane(), Chat().events())).items("message")) == 1


def test_a_stop_text_is_named_where_the_engine_tells_it() -> None:
    events = [chat_event({"content": "a"}), chat_event({}, "stop", stop_reason="END"), DONE]
    message = read_message(through(messages_lane(), events))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def test_calls_with_arguments_that_are_no_object_are_not_told_as_a_message() -> None:
    lane = messages_lane()
    with pytest.raises(BrokenStream, match="no JSON object"):
        lane.read(b"", Chat([call_part(0, "[1]", "f")], "tool_calls").events(), True)


def test_a_call_that_its_limit_cut_off_ends_as_such() -> None:
    chat = Chat([call_part(0, '{"a":', "f")], "length")
    assert read_message(through(messages_lane(), chat.events())).stop_reason == "max_tokens"


def test_going_on_after_the_end_marker_is_no_clean_end() -> None:
    with pytest.raises(BrokenStream, match="went on"):
        messages_lane().read(b"", [*Chat([{"content": "a"}]).events(), chat_event({"content": "b"})], True)


def native_message(*, error: bool = False) -> list[bytes]:
    def named(value: dict[str, Any]) -> bytes:
        return b"event: " + value["type"].encode() + b"\n" + sse(value)

    usage = {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}
    end = (
        {"type": "error", "error": {"type": "internal_error", "message": "Traceback"}}
        if error
        else {"type": "message_stop"}
    )
    return [named(delta), named({"type": "message_delta", "delta": {}, "usage": usage}), named(end)]


@given(st.data())
@settings(max_examples=50)
def test_events_of_an_engine_that_speaks_the_dialect_pass_as_they_came(data: st.DataObject) -> None:
    stream = b"".join(native_message())
    lane = NativeLane(MESSAGE_ENDS, chunked=False)
    assert through(lane, data.draw(splits(stream))) == stream
    assert lane.usage is not None
    assert (lane.usage.prompt_tokens, lane.usage.cached_tokens, lane.usage.completion_tokens) == (5, 2, 4)


def test_an_error_of_an_engine_that_speaks_the_dialect_is_told_in_our_words() -> None:
    lane = NativeLane(MESSAGE_ENDS, chunked=False)
    with pytest.raises(BrokenStream, match="reported an error"):
        lane.read(b"", native_message(error=True), True)
    assert b"Traceback" not in lane.failed("it broke", "truncated")


def test_a_native_stream_without_its_last_event_is_broken() -> None:
    lane = NativeLane(RESPONSE_ENDS, chunked=False)
    lane.read(b"", [b"event: response.created\n" + sse({"type": "response.created", "sequence_number": 0})], False)
    with pytest.raises(BrokenStream, match="without its last event"):
        lane.read(b"", [], True)
    assert b'"sequence_number":1' in lane.failed("it broke", "truncated")


def test_usage_of_a_native_response_is_read_from_its_end() -> None:
    lane = NativeLane(RESPONSE_ENDS, chunked=False)
    usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 4}
    through(lane, [sse({"type": "response.completed", "sequence_number": 0, "response": {"usage": usage}})])
    assert lane.usage is not None
    assert (lane.usage.prompt_tokens, lane.usage.cached_tokens, lane.usage.completion_tokens) == (5, 2, 4)
