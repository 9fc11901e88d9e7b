"""One question and its verdict: every request ends as one of six, a hang among them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from modelyard.selftest.connection import Lost, Response, connect, events_of, post
from modelyard.selftest.gateway_process import GatewayProcess

# whole: the complete, right answer. unavailable: 503 with Retry-After. cut: a stream that ended in an explicit error
# event. reset: the connection ended first. hung: nothing of that before the deadline. wrong: anything else.
Verdict = Literal["whole", "unavailable", "cut", "reset", "hung", "wrong"]
VERDICTS: tuple[Verdict, ...] = ("whole", "unavailable", "cut", "reset", "hung", "wrong")
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Asked:
    """How one request ended. `took_s` counts from before the connection was opened; `detail` says what was wrong."""

    verdict: Verdict
    detail: str
    took_s: float
    response: Response | None = None

    @property
    def request_id(self) -> str:
        return self.response.headers.get("x-request-id", "") if self.response is not None else ""


async def ask(
    gateway: GatewayProcess,
    body: dict[str, Any],
    *,
    within_s: float,
    expected: str | None = None,
    key: str = "",
    path: str = CHAT,
) -> Asked:
    """One chat request on a connection of its own; `expected` is the text of the right answer, None where any is."""
    began = time.monotonic()
    response: Response | None = None
    try:
        connection = await connect(f"http://127.0.0.1:{gateway.port}")
        try:
            response = await connection.ask(post(path, key or gateway.key, body), within_s)
        finally:
            connection.close()
        verdict, detail = judge(response.status, response.headers, response.body, body.get("stream") is True, expected)
    except TimeoutError:
        verdict, detail = "hung", f"no end within {within_s:g} s"
    except (Lost, OSError) as error:
        verdict, detail = "reset", str(error)
    return Asked(verdict, detail, time.monotonic() - began, response)


def judge(
    status: int, headers: dict[str, str], body: bytes, stream: bool, expected: str | None = None
) -> tuple[Verdict, str]:
    """The verdict on a chat response that was received to its end, and what is wrong with it."""
    try:
        if status == 503:
            is_well_said = headers.get("retry-after", "").isdigit() and "error" in json.loads(body)
            return ("unavailable", "") if is_well_said else ("wrong", f"a 503 without Retry-After: {body[:200]!r}")
        if status != 200:
            return "wrong", f"status {status}: {body[:200]!r}"
        return _judge_stream(body, expected) if stream else _judge_plain(body, expected)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return "wrong", f"{type(error).__name__} {error}: {body[-200:]!r}"


def _judge_plain(body: bytes, expected: str | None) -> tuple[Verdict, str]:
    choice = json.loads(body)["choices"][0]
    return _judge_text(choice["message"]["content"], choice["finish_reason"], expected)


def _judge_stream(body: bytes, expected: str | None) -> tuple[Verdict, str]:
    *events, last = [event.removeprefix(b"data:").strip() for event in events_of(body)]
    values: list[dict[str, Any]] = [json.loads(event) for event in events]
    choices = [value["choices"][0] for value in values if value.get("choices")]
    finished = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if last != b"[DONE]":
        is_explicit = "error" in json.loads(last) and not finished and not any("error" in value for value in values)
        return ("cut", "") if is_explicit else ("wrong", f"a stream that ends with {last[:200]!r} after {finished}")
    return _judge_text("".join(choice["delta"].get("content") or "" for choice in choices), finished[0], expected)


def _judge_text(text: str, finish_reason: str, expected: str | None) -> tuple[Verdict, str]:
    if finish_reason not in ("stop", "length"):
        return "wrong", f"finish_reason {finish_reason!r}"
    if expected is not None and text != expected:
        return "wrong", f"{text[-80:]!r} instead of {expected[-80:]!r}"
    return "whole", ""
