"""Whether a stream that went through several engines reads as one answer of one engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class NotOne(Exception):
    """It does not; the text says where that shows."""


@dataclass(frozen=True)
class Answer:
    """`pieces` are the texts of its events, `billed` prompt and completion tokens as the journal has them."""

    pieces: tuple[str, ...]
    finish_reason: str
    billed: tuple[int, int]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def read_answer(body: dict[str, Any], sent: bytes, billed: tuple[int, int]) -> Answer:
    """What the client of request `body` was sent, to the last byte. Raises NotOne for anything that a single engine
    would not have said: another end, id or role, a second reason to finish, usage that is not what was billed."""
    if not sent.endswith(b"\n\ndata: [DONE]\n\n"):
        raise NotOne(f"it ends with {sent[-200:]!r}")
    events = sent.split(b"\n\n")[:-2]
    values: list[dict[str, Any]] = [json.loads(event.removeprefix(b"data:")) for event in events]
    choices = [value["choices"][0] for value in values if value["choices"]]
    if len({(value["id"], value["created"]) for value in values}) != 1:
        raise NotOne("more than one id")
    if (roles := sum("role" in choice.get("delta", {}) for choice in choices)) != ("messages" in body):
        raise NotOne(f"{roles} roles")
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if len(reasons) != 1:
        raise NotOne(f"finish reasons {reasons}")
    told = [_told(value["usage"]) for value in values if value.get("usage")]
    if told != [billed] * ("stream_options" in body):
        raise NotOne(f"billed {billed}, told {told}")
    pieces = (_text_of(choice) for choice in choices)
    return Answer(tuple(text for text in pieces if text), reasons[0], billed)


def _told(usage: dict[str, int]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"]


def _text_of(choice: dict[str, Any]) -> str:
    return choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
