"""JSON of strangers: what two parsers could read differently is refused, and nothing may grow out of proportion.

msgspec parses fast but keeps the last of two equal keys, so a body could mean one thing here and another behind us.
Re-encoding what was parsed gives the same bytes, or the same but for spaces, for nearly all that client libraries
write: then no key was dropped. Only where it does not (escapes, odd numbers, or indeed a key twice) keys are counted.

Large bodies are read with rests, in which the event loop serves others: each step takes milliseconds."""

from __future__ import annotations

import json
import random
from collections.abc import Generator
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from modelyard.gateway.between_strings import counted
from modelyard.gateway.limits import FieldLimits
from modelyard.gateway.refusals import Refusal, invalid

# Primes.
_DISTANCES = (53, 59, 61, 67, 71, 73, 79, 83)
_SPACES = b" \t\n\r"
_SEPARATORS = b",[{"
# Up to here a key that appears twice is looked for by name: in 8 ms at most, what is between the strings.
_NAMED_BYTES = 64 * 1024
_NAMED_PARTS = 16_384
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


ReadBody = tuple[dict[str, Any], bytes]
"""The object that a body holds, free of duplicate keys, and its compact encoding."""
Body = bytes | ReadBody
Reading = Generator[None, None, ReadBody]
Checking = Generator[None, None, None]
_T = TypeVar("_T")


def parse_object(body: Body, limits: FieldLimits) -> ReadBody:
    """What `body` holds, unless it was read already. Raises Refusal (400).

    Depth is bounded where a field may hold anything (`fields`), and by the parser everywhere."""
    if isinstance(body, tuple):
        return body
    if len(body) > 2 * limits.json_keys or len(body) > 2 * limits.json_values:
        return _to_the_end(reading(body, limits))
    fields = _decoded(body)
    compact = _encode(fields)
    if compact != body and not _alike_but_for_spaces(body, compact):
        _to_the_end(_check_keys(body, compact))
    return fields, compact


def reading(body: bytes, limits: FieldLimits) -> Reading:
    """`parse_object` in steps: it rests at each yield."""
    yield from _check_proportions(body, limits)
    fields = _decoded(body)
    yield
    compact = _encode(fields)
    yield
    if compact != body:
        alike = _alike_but_for_spaces(body, compact)
        yield
        if not alike:
            yield from _check_keys(body, compact)
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


def _to_the_end(steps: Generator[None, None, _T]) -> _T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        value: object = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None
    if type(value) is not dict:
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    return cast("dict[str, Any]", value)


def _check_proportions(body: bytes, limits: FieldLimits) -> Checking:
    """An empty list takes 3 bytes on the wire and 72 here; a key, with what is behind it, 5 and 200."""
    values, keys = limits.json_values, limits.json_keys
    # Of commas and brackets there are at least as many as of values, but one.
    if _are_many(body, _SEPARATORS, values) and (yield from counted(body, _SEPARATORS, values)) > values:
        raise Refusal(400, f"the body has more than {values} JSON values", code="invalid_json")
    if _are_many(body, b":", keys) and (yield from counted(body, b":", keys)) > keys:
        raise Refusal(400, f"the body has more than {keys} keys", code="invalid_json")


def _are_many(body: bytes, marks: bytes, most: int) -> bool:
    """Whether there are more than `most` marks, inside strings or not. Two samples are counted first, each of every
    so-manieth byte: chance picks the distance, so that no pattern can avoid it."""
    if len(body) <= 2 * most:
        # Every mark has a value of a byte or more.
        return False
    for distance in random.sample(_DISTANCES, 2):
        if _count(body[random.randrange(distance) :: distance], marks) * distance > most // 2:
            return _count(body, marks) > most
    return False


def _count(text: bytes, what: bytes) -> int:
    return len(text) - len(text.translate(None, what))


def _alike_but_for_spaces(body: bytes, compact: bytes) -> bool:
    """Whether both are the same without spaces, inside strings or not. Removing those leaves every token what it is,
    and nothing else of a key can vanish: the same tokens have as many keys, so none was dropped."""
    return body.translate(None, _SPACES) == compact.translate(None, _SPACES)


def _check_keys(body: bytes, compact: bytes) -> Checking:
    """Each key has a colon. Where there are many, which of them appears twice is not looked for: that takes long, and
    cannot rest."""
    if len(body) <= _NAMED_BYTES or _count(body, b":,") <= _NAMED_PARTS:
        _name_keys(body)
        yield
        return
    if (yield from counted(body, b":")) != (yield from counted(compact, b":")):
        raise invalid("a key appears twice in an object of the body")


def _name_keys(body: bytes) -> None:
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
