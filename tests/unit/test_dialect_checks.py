"""Answers that are looked at: called tools, structured output, and thoughts under both names."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from dialect_streams import DONE, Chat, call_part, chat_event, chats, splits, through
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.gateway.dialects.both_names import BothNamesLane, with_both_names
from modelyard.gateway.dialects.chat import Function, Message, ToolCall
from modelyard.gateway.dialects.checks import CheckedLane, CheckingSpeaker, Expectation, PlainSpeaker, expectation
from modelyard.gateway.dialects.schema import breaks
from modelyard.gateway.fields import parse
from modelyard.gateway.lanes import RawLane
from modelyard.gateway.line_ends import escaped

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def expects(**fields: Any) -> Expectation | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return expectation(parse(json.dumps(body).encode(), "/v1/chat/completions").call)


def answered(content: str | None = None, *calls: tuple[str, str]) -> Message:
    return Message(content=content, tool_calls=[ToolCall(0, "c", Function(*call)) for call in calls] or None)


TOOLS = expects(tools=[{"type": "function", "function": {"name": "f"}}])
JSON = expects(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}})
OBJECT = expects(response_format={"type": "json_object"})


def test_the_usual_request_expects_nothing() -> None:
    assert expects() is None
    assert expects(response_format={"type": "text"}) is None
    assert expects(tools=[]) is None


@pytest.mark.parametrize("name", [{"a": 1}, ["f"], 7, None, ""])
def test_a_tool_whose_name_is_no_text_can_be_called_by_no_answer(name: object) -> None:
    assert expects(tools=[{"type": "function", "function": {"name": name}}]) is None


@pytest.mark.parametrize(
    ("expected", "said", "finish", "verdict"),
    [
        (TOOLS, answered(None, ("f", '{"x":1}')), "tool_calls", ""),
        (TOOLS, answered(None, ("f", "")), "tool_calls", ""),
        (TOOLS, answered("no need"), "stop", ""),
        (TOOLS, answered(None, ("g", "{}")), "tool_calls", "tool_call_unknown"),
        (TOOLS, answered(None, ("f", "{x")), "tool_calls", "tool_arguments_invalid"),
        (TOOLS, answered(None, ("f", "[1]")), "tool_calls", "tool_arguments_invalid"),
        (TOOLS, answered(None, ("f", "{x")), "length", ""),
        (JSON, answered('{"a":1}'), "stop", ""),
        (JSON, answered('{"a":"1"}'), "stop", "answer_breaks_schema"),
        (JSON, answered('{"a":1,"b":2}'), "stop", "answer_breaks_schema"),
        (JSON, answered("a: 1"), "stop", "answer_not_json"),
        (JSON, answered(""), "stop", "answer_not_json"),
        (JSON, answered('{"a":'), "length", ""),
        (OBJECT, answered("[]"), "stop", "answer_breaks_schema"),
        (OBJECT, answered("{}"), "stop", ""),
    ],
)
def test_a_verdict_names_what_is_wrong_in_one_word(
    expected: Expectation, said: Message, finish: str, verdict: str
) -> None:
    assert expected.verdict(said, finish) == verdict


def test_a_whole_answer_passes_unchanged_whatever_the_verdict() -> None:
    assert JSON is not None
    value = {"choices": [{"message": {"role": "assistant", "content": "no"}, "finish_reason": "stop"}]}
    body = json.dumps(value).encode()
    assert CheckingSpeaker(PlainSpeaker(), JSON).whole(body) == (body, None, "answer_not_json")


@given(chats(), st.data())
@settings(max_examples=60)
def test_a_stream_that_is_looked_at_is_the_same_stream(chat: Chat, data: st.DataObject) -> None:
    stream = b"".join(chat.events())
    assert TOOLS is not None
    lane = CheckedLane(RawLane(True, False), TOOLS)
    assert through(lane, data.draw(splits(stream))) == escaped(stream)
    unknown = chat.finish == "tool_calls" and bool(chat.calls)
    assert lane.verdict == ("tool_call_unknown" if unknown else "")
    assert lane.usage is not None and lane.events > 0


def test_calls_in_pieces_are_looked_at_as_a_whole() -> None:
    assert TOOLS is not None
    for arguments, verdict in (('{"a"', "tool_arguments_invalid"), ('{"a":1}', "")):
        chat = Chat([call_part(0, "", "f"), *(call_part(0, letter) for letter in arguments)], "tool_calls")
        lane = CheckedLane(RawLane(True, False), TOOLS)
        through(lane, chat.events())
        assert lane.verdict == verdict


def test_what_is_too_long_to_be_kept_is_not_judged() -> None:
    assert JSON is not None
    lane = CheckedLane(RawLane(True, False), JSON)
    piece = chat_event({"content": "x" * 1_000_000})
    through(lane, [piece] * 5 + [chat_event({}, "stop"), DONE])
    assert lane.verdict == ""


# Thoughts.


def test_thoughts_are_readable_under_both_names() -> None:
    value = {"choices": [{"message": {"role": "assistant", "content": "a", "reasoning": "hm"}}], "usage": None}
    message = json.loads(with_both_names(json.dumps(value).encode(), "reasoning"))["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "hm"


@given(chats(), st.data())
@settings(max_examples=60)
def test_a_stream_with_thoughts_has_them_under_both_names_and_nothing_else_changed(
    chat: Chat, data: st.DataObject
) -> None:
    out = through(BothNamesLane(True, False, "reasoning"), data.draw(splits(b"".join(chat.events()))))
    events = out[:-2].split(b"\n\n")
    assert len(events) == len(chat.events())
    for event, sent in zip(events, chat.events(), strict=True):
        if b'"reasoning":' not in sent:
            assert event + b"\n\n" == escaped(sent)
            continue
        before, after = json.loads(sent[5:]), json.loads(event[5:])
        before["choices"][0]["delta"]["reasoning_content"] = before["choices"][0]["delta"]["reasoning"]
        assert after == before


def test_an_event_without_thoughts_travels_raw() -> None:
    lane = BothNamesLane(True, True, "reasoning")
    plain = chat_event({"content": 'he said "reasoning": yes'})
    raw = b"%x\r\n%b\r\n" % (len(plain), plain)
    assert lane.passes(raw)
    assert not lane.passes(raw.replace(b'"content"', b'"reasoning"'))
    null = chat_event({"content": "a", "reasoning": None}).replace(b'"reasoning": null', b'"reasoning":null')
    assert lane.passes(b"%x\r\n%b\r\n" % (len(null), null))


# Schemas.

_SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
_KINDS = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])


def _schemas() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.booleans(),
        st.fixed_dictionaries({"type": _KINDS | st.lists(_KINDS, min_size=1, max_size=2, unique=True)}),
        st.fixed_dictionaries({"enum": st.lists(_SCALARS, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"const": _SCALARS}),
        st.just({"$ref": "#/$defs/x"}),
    )

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        ways = st.lists(inner, min_size=1, max_size=2)
        named = {
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "additionalProperties": inner,
        }
        listed = {"items": inner, "prefixItems": ways, "minItems": st.integers(0, 2), "maxItems": st.integers(0, 3)}
        either = st.fixed_dictionaries({}, optional={"anyOf": ways, "allOf": ways})
        return st.fixed_dictionaries({}, optional=named) | st.fixed_dictionaries({}, optional=listed) | either

    return st.recursive(leaves, deeper, max_leaves=6)


@given(_VALUES, _schemas())
@settings(max_examples=400)
def test_what_is_judged_is_judged_as_an_independent_judge_does(value: Any, schema: Any) -> None:
    if isinstance(schema, dict):
        schema = {**schema, "$defs": {"x": {"type": ["integer", "null"]}}}
    judge = jsonschema.Draft202012Validator(schema)
    assert (breaks(value, schema) == "") == judge.is_valid(value)


def test_a_schema_that_refers_to_itself_without_end_is_not_judged() -> None:
    assert breaks(1, {"$ref": "#"}) == ""


def test_the_path_says_where() -> None:
    schema = {"properties": {"names": {"items": {"type": "string"}}}}
    assert breaks({"names": ["a", 1]}, schema) == "$.names[1]"
