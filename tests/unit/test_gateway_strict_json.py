"""However a body is read, at once or step by step, by re-encoding or by counting: the verdict is the same."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway import strict_json
from modelyard.gateway.between_strings import PIECE_BYTES, counted
from modelyard.gateway.limits import FIELDS, FieldLimits
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.strict_json import parse_object, reading

T = TypeVar("T")
FEW = FieldLimits(json_values=100)


def to_the_end(steps: Generator[None, None, T]) -> tuple[T, int]:
    """What it returns, and how often it rested."""
    rests = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, rests
        rests += 1


@contextmanager
def every_key_is_counted() -> Generator[None]:
    """As in bodies that are too large for json.loads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_NAMED_BYTES", -1)
        patch.setattr(strict_json, "_NAMED_PARTS", -1)
        yield


# What the tests hold the gateway to: the standard library, asked to tell of every key.


def said_by_the_standard_library(body: bytes) -> dict[str, Any] | None:
    """The object in a body; None where a key appears twice, or where there is none."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        text = body.decode()
        text.encode("utf-16")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


# Texts as strangers write them.

KEYS = st.sampled_from(["a", "b", "a b", " a", "", "é", "\\", '"', ":", "a\u2028", "{", "\n"])
TEXTS = st.one_of(KEYS, st.text(alphabet='ab \\":,[{}]é\u2028\n\t🙂\x00', max_size=8))
SPACES = st.sampled_from(["", "", "", " ", "  ", "\n", "\t", "\r\n"])
NUMBERS = st.sampled_from(["0", "-0", "1.0", "1e2", "1E+2", "0.10", "-1.5e-3", "12345678901234567890", "9" * 30])


@st.composite
def strings(draw: st.DrawFn) -> str:
    text = draw(TEXTS)
    written = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if text and draw(st.integers(0, 3)) == 0:
        written = '"' + "".join(f"\\u{ord(one):04x}" if one < "\ud800" else one for one in text) + '"'
        written = written if all(one >= " " for one in written) else json.dumps(text)
    return written


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    """Keys may appear twice."""
    space = draw(SPACES)
    pairs = draw(st.lists(st.tuples(strings(), inner), max_size=4))
    return "{" + space + f"{space},{space}".join(f"{key}{space}:{space}{value}" for key, value in pairs) + space + "}"


@st.composite
def lists(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    space = draw(SPACES)
    return "[" + f",{space}".join(draw(st.lists(inner, max_size=4))) + space + "]"


SCALARS = st.one_of(strings(), NUMBERS, st.sampled_from(["true", "false", "null"]))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(objects(inner), lists(inner)), max_leaves=12)
BODIES = objects(VALUES).map(str.encode)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body in which some bytes were replaced, put in or left out."""
    body = bytearray(draw(BODIES))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"}", b",", b":", b"NaN", b"\xff", b"\\ud800", b"\x00", b"1"])
        )
    return bytes(body)


def verdict(body: bytes, limits: FieldLimits = FIELDS, *, by_steps: bool = False) -> dict[str, Any] | None:
    try:
        fields, compact = to_the_end(reading(body, limits))[0] if by_steps else parse_object(body, limits)
    except Refusal as refusal:
        assert refusal.status == 400
        return None
    assert json.loads(compact) == fields
    return fields


@given(st.one_of(BODIES, damaged()))
def test_every_way_of_reading_comes_to_the_verdict_of_the_standard_library(body: bytes) -> None:
    expected = said_by_the_standard_library(body)
    assert verdict(body) == expected
    assert verdict(body, by_steps=True) == expected
    with every_key_is_counted():
        assert verdict(body) == expected
        assert verdict(body, by_steps=True) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":1, "a":100}',
        b'{"a":1e5,"a":1}',
        b'{"x":{"a":[],"a":{}},"x":1.0}',
        b'{"a b":1,"ab":2,"a b":3}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":"\\"","b":{"c":"\\\\","c":":"}}',
    ],
)
def test_a_key_that_appears_twice_is_found_by_counting_too(body: bytes) -> None:
    assert said_by_the_standard_library(body) is None
    with every_key_is_counted(), pytest.raises(Refusal, match="appears twice"):
        parse_object(body, FIELDS)


@given(st.lists(st.sampled_from(["[],", "{},", '"a",', '",[{",', '"\\"",', "1.0,"]), max_size=150))
def test_reading_by_steps_bounds_the_same_values(parts: list[str]) -> None:
    body = f'{{"x":[{"".join(parts)}0]}}'.encode()
    assert verdict(body, FEW, by_steps=True) == verdict(body, FEW)
    assert (verdict(body, FEW) is None) <= (len(body) > 200)


@pytest.mark.parametrize(("inner", "named"), [("1.00,", "JSON values"), ('"key":1,', "keys")])
def test_as_many_as_are_allowed_are_read_and_not_one_more(inner: str, named: str) -> None:
    brackets = "[]" if named == "JSON values" else "{}"
    limits = FieldLimits(json_values=100) if named == "JSON values" else FieldLimits(json_keys=100)
    for count in (1, 2):  # of marks that the body has beside those of the parts
        parts = "".join(inner.replace("key", str(number)) for number in range(98 + count))
        body = f'{{"x":{brackets[0]}{parts[:-1]}{brackets[1]}}}'.encode()
        assert len(body) > 200
        for by_steps in (False, True):
            assert (verdict(body, limits, by_steps=by_steps) is None) == (count == 2), named


def test_a_body_that_cannot_hold_too_many_values_is_not_counted() -> None:
    body = b'{"x":[' + b"[]," * 60 + b"0]}"
    assert len(body) <= 2 * FEW.json_values
    assert verdict(body, FEW, by_steps=True) == verdict(body, FEW) == json.loads(body)


# Counting between strings.


@given(st.text(alphabet='"\\,[a', max_size=60), st.integers(2, 9), st.sampled_from([b",", b",["]))
def test_what_is_between_strings_is_counted_however_the_text_is_cut(text: str, piece_bytes: int, what: bytes) -> None:
    found, inside, escaped = 0, False, False
    for one in text:
        if one == '"' and not escaped:
            inside = not inside
        found += one.encode() in what and not inside
        escaped = one == "\\" and not escaped
    assert to_the_end(counted(text.encode(), what, piece_bytes=piece_bytes))[0] == found


def test_counting_rests_after_each_piece_and_stops_where_there_are_too_many() -> None:
    text = b"," * (4 * PIECE_BYTES)
    assert to_the_end(counted(text, b",")) == (4 * PIECE_BYTES, 4)
    assert to_the_end(counted(text, b",", PIECE_BYTES)) == (2 * PIECE_BYTES, 2)


def test_a_large_body_is_read_with_rests() -> None:
    text = "a: \\ 漢 " * 200_000
    escaped = json.dumps({"x": text, "y": {str(number): number for number in range(20_000)}}).encode()
    (fields, _), rests = to_the_end(reading(escaped, FIELDS))
    assert fields["x"] == text
    assert rests > len(escaped) // PIECE_BYTES
