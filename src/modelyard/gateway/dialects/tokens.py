"""Counting without answering: /tokenize and /detokenize, in vLLM's shape, which no official API has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelyard.gateway.dialects.bounds import Name, Object, Text, TokenId, read_call
from modelyard.gateway.dialects.dialect import DETOKENIZE, TOKENIZE, Spoken
from modelyard.gateway.dialects.plain import PlainCall, plain
from modelyard.gateway.explaining import explained
from modelyard.gateway.fields import Parsed
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import invalid
from modelyard.gateway.strict_json import Body, depth


class Part(msgspec.Struct, tag_field="type", tag="text"):
    text: Text


class Turn(msgspec.Struct, omit_defaults=True):
    """A message of a chat whose tokens are counted."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    name: Name | None = None
    tool_call_id: Name | None = None
    tool_calls: Annotated[list[Object], Meta(max_length=FIELDS.tools)] | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None


class TokenizeCall(PlainCall, kw_only=True, omit_defaults=True):
    prompt: Text | None = None
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=FIELDS.messages)] | None = None
    tools: Annotated[list[Object], Meta(max_length=FIELDS.tools)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeCall(PlainCall, kw_only=True, omit_defaults=True):
    tokens: Annotated[list[TokenId], Meta(max_length=FIELDS.max_tokens)]


def read_tokenize(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    call, unknown = read_call(body, TokenizeCall)
    _check(call)
    return plain(TOKENIZE, call, unknown)


def read_detokenize(body: Body, request_id: str) -> Spoken:
    """Raises Refusal (400)."""
    return plain(DETOKENIZE, *read_call(body, DetokenizeCall))


def parsed_tokenize(fields: dict[str, Any]) -> Parsed:
    """A tokenize request made of another one. Raises Refusal (400)."""
    try:
        call = msgspec.convert(fields, TokenizeCall)
    except msgspec.ValidationError as error:
        raise explained(error) from None
    _check(call)
    return plain(TOKENIZE, call, frozenset()).parsed


def _check(call: TokenizeCall) -> None:
    if (call.prompt is None) == (call.messages is None):
        raise invalid("either prompt or messages is needed", "prompt")
    calls = [called for turn in call.messages or () for called in turn.tool_calls or ()]
    for name, value in (("tools", call.tools), ("messages", calls)):
        if value and depth(value) > FIELDS.json_depth:
            raise invalid(f"{name} nests deeper than {FIELDS.json_depth} levels", name)
