"""JSON of strangers: what two parsers could read differently is refused, and nothing may be deeper than it should be.

msgspec parses fast but keeps the last of two equal keys, so a body could mean one thing here and another behind us.
Most bodies are written compactly by a client library: re-encoding what was parsed then gives the same bytes, so no key
was dropped. Only bodies that differ (spaces, escapes, odd numbers, or indeed a key twice) take the slow, exact path.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, cast

import msgspec

from modelyard.gateway.limits import FieldLimits
from modelyard.gateway.refusals import Refusal, invalid


def parse_object(body: bytes, limits: FieldLimits) -> tuple[dict[str, Any], bytes]:
    """The object that `body` holds, free of duplicate keys, and its compact encoding. Raises Refusal (400).

    Depth is bounded where a field may hold anything (`fields`), and by the parser everywhere."""
    try:
        value: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    fields = cast("dict[str, Any]", value)
    compact = msgspec.json.encode(fields)
    if compact != body or (len(body) > limits.json_keys and body.count(b":") > limits.json_keys):
        _check_keys(body, limits.json_keys)
    if len(body) > limits.string_bytes:
        _check_strings(fields, limits.string_bytes)
    return fields, compact


def children(value: Any) -> list[Any]:
    """The values directly inside a JSON value."""
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def depth(value: Any) -> int:
    """How many levels a JSON value has; a scalar has one. Walks level by level: no recursion to exhaust."""
    levels, level = 0, [value]
    while level:
        levels += 1
        level = [child for item in level for child in children(item)]
    return levels


def _check_keys(body: bytes, most: int) -> None:
    count = 0

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal count
        count += len(pairs)
        if count > most:
            raise Refusal(400, f"the body has more than {most} keys", code="invalid_json")
        seen = dict(pairs)
        if len(seen) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise invalid(f"the key {twice[:64]!r} appears twice", twice[:64])
        return seen

    try:
        json.loads(body, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _refuse_constant(name: str) -> NoReturn:
    raise Refusal(400, f"{name} is not JSON", code="invalid_json")


def _check_strings(value: Any, most: int) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str) and len(item) > most:
            raise Refusal(400, f"a string is longer than {most} characters", code="invalid_json")
        pending.extend(children(item))
