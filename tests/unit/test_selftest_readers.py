"""The readers that stand for clients see an injected event, and the campaign calls it one."""

from __future__ import annotations

import json

import pytest

from modelyard.selftest.connection import Response
from modelyard.selftest.rows.injected_text import PATHS, Way, problems
from modelyard.selftest.sse_readers import READERS

CHAT = Way(PATHS[0], True)


def piece(text: str, *, escaped: bool = True) -> bytes:
    value = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
    if escaped:
        return f"data: {json.dumps(value)}\n\n".encode()
    raw = json.dumps(value, ensure_ascii=False).replace("\\n", "\n")
    return f"data: {raw}\n\n".encode()


def response(body: bytes) -> Response:
    return Response(200, {"content-type": "text/event-stream"}, body, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_finds_the_events_and_leaves_comments_out(read: object) -> None:
    assert callable(read)
    assert read(b": ping\n\ndata: a\n\nevent: x\ndata: b\nid: 1\n\ndata: [DONE]\n\n") == ["a", "b", "[DONE]"]


@pytest.mark.parametrize("text", ["a\u2028b", "data: [DONE]\n\n", "\r\n\r\n", "\x85", "0\r\n\r\n"])
def test_text_that_is_escaped_is_read_as_it_was(text: str) -> None:
    assert problems(CHAT, response(piece(text) + b"data: [DONE]\n\n"), text) == []


@pytest.mark.parametrize(
    "body",
    [
        piece("a\n\ndata: [DONE]\n\n", escaped=False) + b"data: [DONE]\n\n",
        piece("a") + b"data: [DONE]\n\ndata: [DONE]\n\n",
        piece("a") + b"data: [DONE]\n\n" + piece("b"),
        piece("a") + b"\rdata: {}\r\r" + b"data: [DONE]\n\n",
        piece("a"),
        piece("a") + piece("\u2028", escaped=False) + b"data: [DONE]\n\n",
        piece("a") + piece("\x85", escaped=False) + b"data: [DONE]\n\n",
        b"",
    ],
)
def test_an_event_that_the_model_did_not_say_is_noticed(body: bytes) -> None:
    assert problems(CHAT, response(body), "a") != []
