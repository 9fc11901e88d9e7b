"""A stream of several engines that reads as one answer, and each way in which it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelyard.selftest.one_answer import Answer, NotOne, read_answer

ASKED: dict[str, Any] = {"messages": [], "stream_options": {"include_usage": True}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(choice: dict[str, Any] | None, number: int = 1, **more: Any) -> bytes:
    value = {"id": f"c{number}", "created": number, "choices": [] if choice is None else [choice], **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(number: int = 1, reason: str | None = None, **delta: str) -> bytes:
    return event({"index": 0, "delta": delta, "finish_reason": reason}, number)


FIRST, SECOND, END = piece(role="assistant", content="w0"), piece(content=" w1"), piece(reason="stop")
TOLD, DONE = event(None, usage=USAGE), b"data: [DONE]\n\n"


def test_an_answer_is_its_pieces_its_reason_and_what_was_billed() -> None:
    found = read_answer(ASKED, FIRST + SECOND + END + TOLD + DONE, (3, 2))
    assert found == Answer(("w0", " w1"), "stop", (3, 2)) and found.text == "w0 w1"


def test_a_completion_has_no_role_and_usage_only_where_it_is_asked_for() -> None:
    sent = event({"index": 0, "text": "w0", "finish_reason": "length"}) + DONE
    assert read_answer({"prompt": "x"}, sent, (1, 1)) == Answer(("w0",), "length", (1, 1))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (FIRST + SECOND + END + TOLD, "it ends with"),
        (FIRST + SECOND + END + TOLD + DONE + b": ", "it ends with"),
        (b"", "it ends with"),
        (b"data: [DO", "it ends with"),
        (FIRST + piece(2, content=" w1") + END + TOLD + DONE, "more than one id"),
        (FIRST + piece(role="assistant", content=" w1") + END + TOLD + DONE, "2 roles"),
        (SECOND + END + TOLD + DONE, "0 roles"),
        (FIRST + SECOND + END + END + TOLD + DONE, "finish reasons"),
        (FIRST + SECOND + TOLD + DONE, "finish reasons"),
        (FIRST + SECOND + END + DONE, "billed"),
        (FIRST + SECOND + END + TOLD + TOLD + DONE, "billed"),
        (FIRST + SECOND + END + event(None, usage={**USAGE, "completion_tokens": 3}) + DONE, "billed"),
    ],
)
def test_whatever_a_single_engine_would_not_have_said_is_found(sent: bytes, words: str) -> None:
    with pytest.raises(NotOne, match=words):
        read_answer(ASKED, sent, (3, 2))
