"""Answers that are wrong in exactly one way (fake_knobs.DEFECTS). Standard library only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from modelyard.testing.fake_answers import Answer, cut

SHORT_TOKENS = 8


def stem(defect: str, sound: str) -> str:
    """What the words of an answer begin with."""
    return f"w{os.getpid()}." if defect == "restart" else sound


def answer(defect: str, sound: Answer, pieces: Sequence[str], *, chat: bool, stream: bool, limit: int | None) -> Answer:
    """The answer in place of `sound`, which was cut from `pieces` for a request of at most `limit` tokens."""
    short = limit is not None and limit <= SHORT_TOKENS
    match defect:
        case "chat" if chat and not stream and short:
            return _blank(sound)
        case "completion" if not chat and not stream and short:
            return _blank(sound)
        case "chat-stream" if chat and stream and sound.finish_reason == "length":
            return _begun_otherwise(sound)
        case "completion-stream" if not chat and stream:
            return _begun_otherwise(sound)
        case "stop":
            return cut(pieces, (), limit or len(pieces))
        case "max-tokens" if chat and limit is not None and 1 < limit <= SHORT_TOKENS:
            return cut(pieces, (), limit + 2)
        case _:
            return sound


def _blank(sound: Answer) -> Answer:
    return replace(sound, pieces=(" ",) * len(sound.pieces))


def _begun_otherwise(sound: Answer) -> Answer:
    return replace(sound, pieces=("v0", *sound.pieces[1:]))
