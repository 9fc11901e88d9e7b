"""What a client was told in the end, told apart as strictly as OpenAI's format allows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from modelyard.selftest.connection import Response, events_of

# whole: the complete, right answer. refused: an error object in place of an answer. cut: a stream that begins rightly
# and ends in an error event, without [DONE]. wrong: anything else.
Ending = Literal["whole", "refused", "cut", "wrong"]
RETRYABLE = frozenset((502, 503, 504))


@dataclass(frozen=True)
class Judged:
    ending: Ending
    detail: str = ""


def judged(response: Response, expected: str, *, stream: bool) -> Judged:
    """How a chat response ended whose right text is `expected`."""
    try:
        if response.status != 200:
            return _refusal(response)
        return _stream(response.body, expected) if stream else _plain(response.body, expected)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return Judged("wrong", f"{type(error).__name__} {error}: {response.body[-200:]!r}")


def error_problem(value: Any) -> str:
    """What is wrong with `value` as OpenAI's error object; empty where nothing is."""
    error = cast("dict[str, Any]", value).get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return "no error object"
    fields = cast("dict[str, Any]", error)
    if not isinstance(fields.get("message"), str) or not fields["message"]:
        return "an error without a message"
    if not isinstance(fields.get("type"), str):
        return "an error without a type"
    if not {"param", "code"} <= fields.keys():
        return "an error without param or code"
    return ""


def _refusal(response: Response) -> Judged:
    if not response.headers.get("content-type", "").startswith("application/json"):
        return Judged("wrong", f"{response.status} with type {response.headers.get('content-type')}")
    if problem := error_problem(json.loads(response.body)):
        return Judged("wrong", f"{response.status}: {problem}")
    if response.status == 503 and not response.headers.get("retry-after", "").isdigit():
        return Judged("wrong", "a 503 without Retry-After")
    return Judged("refused", str(response.status))


def _plain(body: bytes, expected: str) -> Judged:
    choice = json.loads(body)["choices"][0]
    return _text(choice["message"]["content"], expected, choice["finish_reason"])


def _stream(body: bytes, expected: str) -> Judged:
    """Every event must be one; only the last may be an error or [DONE]."""
    text, finished = "", None
    events = [event.removeprefix(b"data:").strip() for event in events_of(body)]
    if not events:
        return Judged("wrong", "a stream without an event")
    for event in events[:-1]:
        value = json.loads(event)
        if "error" in value:
            return Judged("wrong", "something comes after an error event")
        for choice in value.get("choices") or ():
            text += choice["delta"].get("content") or ""
            finished = choice.get("finish_reason") or finished
    if events[-1] == b"[DONE]":
        return _text(text, expected, finished)
    if problem := error_problem(json.loads(events[-1])):
        return Judged("wrong", f"the last event: {problem}")
    if finished:
        return Judged("wrong", f"an error after finish_reason {finished!r}")
    if not expected.startswith(text):
        return Judged("wrong", f"{text[-80:]!r} is no beginning of the right text")
    return Judged("cut")


def _text(text: str, expected: str, finish_reason: str | None) -> Judged:
    if finish_reason not in ("stop", "length"):
        return Judged("wrong", f"complete with finish_reason {finish_reason!r}")
    if text != expected:
        return Judged("wrong", f"{text[-80:]!r} instead of {expected[-80:]!r}")
    return Judged("whole")
