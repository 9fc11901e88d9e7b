"""JSON of strangers: what two parsers could read differently is refused, and nothing may grow out of proportion.

msgspec parses fast but keeps the last of two equal keys, so a body could mean one thing here and another behind us.
Most bodies are written compactly by a client library: re-encoding what was parsed then gives the same bytes, so no key
was dropped. Only bodies that differ (spaces, escapes, odd numbers, or indeed a key twice) take the slow, exact path.
"""

from __future__ import annotations

import json
import random
from typing import Any, NoReturn, cast

import msgspec

from modelyard.gateway.limits import FieldLimits
from modelyard.gateway.refusals import Refusal, invalid

# Primes.
_DISTANCES = (53, 59, 61, 67, 71, 73, 79, 83)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def parse_object(body: bytes, limits: FieldLimits) -> tuple[dict[str, Any], bytes]:
    """The object that `body` holds, free of duplicate keys, and its compact encoding. Raises Refusal (400).

    Depth is bounded where a field may hold anything (`fields`), and by the parser everywhere."""
    if len(body) > 2 * limits.json_values:
        _check_proportions(body, limits.json_values)
    try:
        value: object = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None
    if type(value) is not dict:
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    fields = cast("dict[str, Any]", value)
    compact = _encode(fields)
    if compact != body:
        _check_keys(body)
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


def _check_proportions(body: bytes, most: int) -> None:
    """An empty list takes 3 bytes on the wire and 72 here. Counting costs more than parsing, so two samples are counted
    first, each of every so-manieth byte: chance picks the distance, so that no pattern can avoid it."""
    for distance in random.sample(_DISTANCES, 2):
        if _separators(body[random.randrange(distance) :: distance]) * distance > most // 2:
            break
    else:
        return
    if _separators(body) > most and _separators_between_strings(body, most) > most:
        raise _too_many(most)


def _separators(text: bytes) -> int:
    """At least as many as there are values, but one."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _separators_between_strings(body: bytes, most: int) -> int:
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * most:
        raise _too_many(most)
    return sum(_separators(part) for part in plain.split(b'"')[::2])


def _too_many(most: int) -> Refusal:
    return Refusal(400, f"the body has more than {most} JSON values", code="invalid_json")


def _check_keys(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        once: set[str] = set()
        for name, _ in pairs:
            if name in once:
                raise invalid(f"the key {name[:64]!r} appears twice", name[:64])
            once.add(name)
    return seen


def _refuse_constant(name: str) -> NoReturn:
    raise Refusal(400, f"{name} is not JSON", code="invalid_json")


def _not_json(error: Exception) -> Refusal:
    return Refusal(400, f"the body is not valid JSON: {error}", code="invalid_json")
