"""What a request may ask for: every bound, and JSON that could be read in two ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway_fakes import MODEL, chat, deployment

from modelyard.gateway.fields import parse, upstream_body, usage_asked, warning_of
from modelyard.gateway.limits import FIELDS, FieldLimits
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.strict_json import depth, parse_object
from modelyard.selftest.cases.parameters import BAD_CHAT, BAD_COMPLETION, CHAT, COMPLETION, DEEP, HUGE

# Properties may have the names of keywords, and what is listed as a value is no schema.
GOOD_SCHEMA: Any = {
    "type": "object",
    "properties": {
        "type": {"type": ["string", "null"], "enum": ["something", None]},
        "pattern": {"type": "string", "pattern": "^[a-z]+$"},
        "items": {"type": "array", "items": {"anyOf": [{"type": "integer"}, True]}, "default": [{"type": 1}]},
    },
    "required": ["type"],
    "additionalProperties": False,
}


def bad_values(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={str(value)[:24]}") for name in table for value in table[name]]


@pytest.mark.parametrize(("name", "value"), bad_values(BAD_CHAT))
def test_a_chat_field_out_of_bounds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(Refusal) as refused:
        parse(chat(**{name: value}), CHAT)
    assert (refused.value.status, refused.value.param) == (400, name)
    assert len(refused.value.message) < 600


@pytest.mark.parametrize(("name", "value"), bad_values(BAD_COMPLETION))
def test_a_completion_field_out_of_bounds_is_refused_by_name(name: str, value: Any) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x", name: value}).encode()
    with pytest.raises(Refusal) as refused:
        parse(body, COMPLETION)
    assert (refused.value.status, refused.value.param) == (400, name)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    fields = {key: value for key, value in json.loads(chat()).items() if key != name}
    with pytest.raises(Refusal, match=f"{name} is missing") as refused:
        parse(json.dumps(fields).encode(), CHAT)
    assert refused.value.param == name


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 2.0},
        {"top_k": -1},
        {"stop": "x"},
        {"stop": ["a", "b"]},
        {"seed": -(2**63)},
        {"max_tokens": None, "temperature": None, "stream": None},
        {"logit_bias": {"50256": -100}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/a"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": GOOD_SCHEMA}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": GOOD_SCHEMA}}]},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y", "name": "z"}]},
        {"messages": [{"content": "x", "role": "user"}]},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
                    ],
                },
                {"role": "tool", "content": "4", "tool_call_id": "1"},
            ]
        },
        # An answer as engines give it, sent back as it is.
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": "x",
                    "refusal": None,
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning_content": "because",
                }
            ]
        },
    ],
)
def test_what_is_within_bounds_reaches_the_engine_unchanged(fields: dict[str, Any]) -> None:
    sent = json.loads(chat(**fields))
    built = json.loads(upstream_body(parse(chat(**fields), CHAT), deployment()))
    assert built == {name: value for name, value in sent.items() if value is not None} | {"model": "e"}


def test_unknown_fields_are_stripped_or_refused_as_the_deployment_says() -> None:
    parsed = parse(chat(frobnicate=1, api_base="http://x"), CHAT)
    assert parsed.stripped == {"frobnicate", "api_base"}
    assert set(json.loads(upstream_body(parsed, deployment()))) == {"model", "messages"}
    with pytest.raises(Refusal) as refused:
        upstream_body(parsed, deployment(unknown_fields="refuse"))
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unknown_parameter", "api_base")


def test_a_field_by_name_is_forwarded_stripped_or_refused_whatever_is_the_rule_for_others() -> None:
    template = {"enable_thinking": False}
    body = chat(chat_template_kwargs=template, frobnicate=1, user="u", seed=1)
    exceptions = {"forwarded_fields": ("chat_template_kwargs",), "stripped_fields": ("user",)}
    parsed = parse(body, CHAT)
    sent = json.loads(upstream_body(parsed, deployment(**exceptions)))
    assert (sent["chat_template_kwargs"], sent["seed"]) == (template, 1)
    assert parsed.stripped == {"frobnicate", "user"}
    assert warning_of(parsed) == b"x-modelyard-ignored-fields: frobnicate, user\r\n"
    with pytest.raises(Refusal) as refused:
        upstream_body(parse(body, CHAT), deployment(**exceptions, unknown_fields="refuse"))
    assert refused.value.param == "frobnicate"
    with pytest.raises(Refusal) as refused:
        upstream_body(parse(body, CHAT), deployment(**exceptions, refused_fields=("seed",)))
    assert refused.value.param == "seed"


@pytest.mark.parametrize("value", [DEEP, HUGE, {"a": [HUGE]}, "x" * 70_000, {"$ref": "http://10.0.0.1/"}])
def test_what_is_forwarded_unread_is_bounded_all_the_same(value: Any) -> None:
    with pytest.raises(Refusal) as refused:
        upstream_body(parse(chat(extra=value), CHAT), deployment(forwarded_fields=("extra",)))
    assert refused.value.param == "extra"


def test_what_the_engine_would_take_and_ignore_is_left_out_and_said() -> None:
    parsed = parse(chat(user="u"), CHAT)
    assert set(json.loads(upstream_body(parsed, deployment(ignored_fields=("user",))))) == {"model", "messages"}
    assert parsed.stripped == {"user"}
    untouched = parse(chat(user=None), CHAT)
    upstream_body(untouched, deployment(ignored_fields=("user",)))
    assert not untouched.stripped


@pytest.mark.parametrize(
    ("asked", "context", "sent"),
    [
        ({"max_tokens": 100}, 0, {"max_tokens": 100}),
        ({"max_tokens": 99}, 100, {"max_tokens": 99}),
        ({"max_tokens": 100}, 100, {"max_tokens": 99}),
        ({"max_completion_tokens": 5000, "max_tokens": 7}, 100, {"max_completion_tokens": 99, "max_tokens": 7}),
        ({}, 100, {}),
    ],
)
def test_no_engine_is_asked_for_more_tokens_than_its_context_holds(
    asked: dict[str, int], context: int, sent: dict[str, int]
) -> None:
    parsed = parse(chat(**asked), CHAT)
    body = json.loads(upstream_body(parsed, deployment(context_tokens=context)))
    assert {name: body[name] for name in body if name.startswith("max_")} == sent
    bounded = {name for name in sent if sent[name] != asked[name]}
    assert set(parsed.bounded) == bounded
    assert warning_of(parsed) == b"".join(b"x-modelyard-bounded-fields: %b\r\n" % name.encode() for name in bounded)


def test_keys_do_not_share_what_the_engine_remembers_of_prompts() -> None:
    def salt(key_id: str, **changes: Any) -> str | None:
        parsed = parse(chat(cache_salt="mine"), CHAT)
        parsed.key_id = key_id
        return json.loads(upstream_body(parsed, deployment(**changes))).get("cache_salt")

    first = salt("one", cache_salt=True)
    assert first is not None and len(first) == 32
    assert "one" not in first
    assert salt("one", cache_salt=True) == first
    assert salt("two", cache_salt=True) not in (first, None)
    assert salt("one", cache_salt=True, salted=False) is None
    assert salt("one") is None, "an engine that knows no salt is sent none"


def test_a_field_that_the_engine_cannot_honour_is_refused_by_name() -> None:
    with pytest.raises(Refusal) as refused:
        upstream_body(parse(chat(tools=[{}]), CHAT), deployment(refused_fields=("tools",)))
    assert refused.value.param == "tools"
    assert upstream_body(parse(chat(tools=None), CHAT), deployment(refused_fields=("tools",)))


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": False}, False),
        ({"include_usage": None}, False),
        ({"include_usage": True}, True),
        ({"include_usage": True, "continuous_usage_stats": True}, True),
    ],
)
def test_usage_is_asked_of_the_engine_in_every_stream(options: Any, asked: bool) -> None:
    parsed = parse(chat(stream=True, stream_options=options), CHAT)
    assert usage_asked(parsed.call) is asked
    assert json.loads(upstream_body(parsed, deployment()))["stream_options"] == {"include_usage": True}


def test_stream_options_without_a_stream_are_left_out() -> None:
    parsed = parse(chat(stream_options={"include_usage": True}), CHAT)
    assert not usage_asked(parsed.call)
    assert "stream_options" not in json.loads(upstream_body(parsed, deployment()))


# JSON.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"1",
        b"{}x",
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\x00"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":1,}',
        b"{/**/}",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_object(body, FIELDS)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":1,"b":2,"a":3}', "a"),
        (b'{"a":1,"\\u0061":2}', "a"),
        (b'{"x":{"b":1,"b":2}}', "b"),
        (b'{"x":[[{"b":1,"b":1}]]}', "b"),
        (b'{"model":"m","messages":[{"role":"user","content":"x","content":"y"}]}', "content"),
        (b'{ "a" : 1 , "a" : 2 }', "a"),
        (b'{"a":"}","a":"\\"a\\":1"}', "a"),
    ],
)
def test_a_key_that_appears_twice_is_refused_by_name(body: bytes, name: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_object(body, FIELDS)
    assert (refused.value.status, refused.value.param) == (400, name)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"b":{"a":1},"c":[{"a":1},{"a":1}]}',
        b'{ "a": 1.0, "b": 1e2 }',
        b'{"a":"\\u00e9","b":"\xc3\xa9"}',
        b'{"a":"\\"a\\":1,\\"a\\":2"}',
        b'{"":1,"a":{"":2}}',
    ],
)
def test_what_only_looks_like_a_key_twice_is_read(body: bytes) -> None:
    fields, compact = parse_object(body, FIELDS)
    assert fields == json.loads(body)
    assert json.loads(compact) == fields


@pytest.mark.parametrize("part", [b"[],", b"{},", b"0.5,", b'"ab",', b'"\\"",', b'"%d":0,'])
def test_a_body_that_would_grow_out_of_proportion_is_refused(part: bytes) -> None:
    inner = b"".join(part % index if b"%" in part else part for index in range(200))[:-1]
    body = b'{"x":{' + inner + b"}}" if b"%" in part else b'{"x":[' + inner + b"]}"
    assert parse_object(body, FIELDS)
    with pytest.raises(Refusal, match="more than 100 JSON values"):
        parse_object(body, FieldLimits(json_values=100))


@pytest.mark.parametrize("text", [",[{" * 2000, '\\",{[' * 2000, "\\\\" * 3000 + ",[{" * 400])
def test_a_text_that_only_looks_like_many_values_is_read(text: str) -> None:
    body = json.dumps({"x": text, "y": [text]}).encode()
    assert parse_object(body, FieldLimits(json_values=100))[0] == {"x": text, "y": [text]}


def test_depth_is_counted_without_recursion() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    assert depth(value) == 100_001
    assert depth({"a": [1, {"b": 2}]}) == 4
    while isinstance(value, list):  # taken apart by hand: the interpreter would recurse
        value = value.pop()
