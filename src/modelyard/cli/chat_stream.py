"""One question to the gateway and its answer as it comes, with what it cost in time and tokens."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from modelyard.errors import EngineFailed, ModelyardError
from modelyard.records.listening import Listening

TIMEOUT_S = 600.0
# Told to a listener: a piece of text, and whether the model thinks aloud or answers.
Kind = Literal["answer", "reasoning"]
OnPiece = Callable[[str, Kind], None]
_TOO_LONG = re.compile(r"context (?:length|size)", re.IGNORECASE)


class ContextExceeded(ModelyardError):
    """The engine counted more tokens than its context holds."""


@dataclass(slots=True)
class Heard:
    """An answer as far as it came. Tokens are the engine's own count, 0 until it is told; times are of a monotonic
    clock, 0 until it came to that."""

    pieces: list[str] = field(default_factory=list[str])
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    asked_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def first_token_s(self) -> float | None:
        return self.first_at - self.asked_at if self.first_at else None

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after the first, which is what `first_token_s` is about."""
        took_s = self.last_at - self.first_at
        return (self.completion_tokens - 1) / took_s if self.completion_tokens > 1 and took_s > 0 else None


async def ask(where: Listening, key: str, body: dict[str, Any], heard: Heard, on_piece: OnPiece) -> None:
    """Fills `heard` while the answer comes. Cancelled, it closes the connection, and the engine stops.

    Raises EngineFailed with what the gateway said, ContextExceeded where the prompt was too long."""
    import aiohttp  # only where it is needed: it is slow to import

    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=TIMEOUT_S)
    heard.asked_at = time.monotonic()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.post(
                f"{where.url}/chat/completions", headers=headers, data=msgspec.json.encode(body), ssl=_trust(where)
            ) as response,
        ):
            if response.status != 200:
                raise _refused(await response.read(), response.status)
            async for line in response.content:
                _take(line, heard, on_piece)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineFailed("the gateway did not answer to the end", hint="modelyard status") from error


def _trust(where: Listening) -> ssl.SSLContext | bool:
    """Our own listener on this machine: its certificate is for the name that others use."""
    if not where.url.startswith("https"):
        return True
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _take(line: bytes, heard: Heard, on_piece: OnPiece) -> None:
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return
    event: dict[str, Any] = msgspec.json.decode(line[6:])
    if "error" in event:
        raise EngineFailed(str(event["error"].get("message")), hint="modelyard logs")
    if usage := event.get("usage"):
        heard.prompt_tokens, heard.completion_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    for choice in event.get("choices", []):
        delta: dict[str, Any] = choice.get("delta") or {}
        heard.finish_reason = choice.get("finish_reason") or heard.finish_reason
        thought, text = delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")
        if thought or text:
            heard.last_at = time.monotonic()
            heard.first_at = heard.first_at or heard.last_at
        if thought:
            on_piece(thought, "reasoning")
        if text:
            heard.pieces.append(text)
            on_piece(text, "answer")


def _refused(answer: bytes, status: int) -> ModelyardError:
    try:
        error: dict[str, Any] = msgspec.json.decode(answer)["error"]
        message, code = str(error["message"]), error.get("code")
    except (msgspec.MsgspecError, KeyError, TypeError):
        message, code = f"the gateway answered {status}", None
    # vLLM and llama.cpp say it in words only.
    if code == "context_length_exceeded" or (status == 400 and _TOO_LONG.search(message)):
        return ContextExceeded(message, hint="say it shorter, or /set max_tokens to less")
    return EngineFailed(message, hint="modelyard status")
