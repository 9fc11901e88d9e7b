"""A head that comes again is recognised by its bytes, and by nothing less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.repeated_head import RepeatedHead

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: %d\r\nx-engine: a\r\n\r\n"


def message(body: bytes) -> bytes:
    return HEAD % len(body) + body


@given(first=st.binary(max_size=2000), then=st.binary(max_size=2000))
def test_the_same_head_with_another_length_gives_the_body(first: bytes, then: bytes) -> None:
    head = RepeatedHead.of(message(first))
    assert head is not None
    assert head.body(message(then)) == then


@pytest.mark.parametrize(
    "other",
    [
        message(b"{}").replace(b"200 OK", b"500 No"),
        message(b"{}").replace(b"x-engine: a", b"x-engine: b"),
        message(b"{}") + b"x",
        message(b"{}") + message(b"{}"),
        message(b"{}")[:-1],
        message(b"{}")[:20],
        message(b"{}").replace(b": 2\r\n", b": +2\r\n"),
        message(b"{}").replace(b": 2\r\n", b": 2\r\nx: y\r\n"),
        message(b"{}").replace(b": 2\r\n", b":\t2\r\n"),
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(other: bytes) -> None:
    head = RepeatedHead.of(message(b'{"a": 1}'))
    assert head is not None
    assert head.body(other) is None


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\ncontent-type: x\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\n{}",
    ],
)
def test_a_head_with_an_unusual_length_is_not_remembered(head: bytes) -> None:
    assert RepeatedHead.of(head) is None
