"""A chat answer as engines give it, as far as other dialects tell of it: typed, so that decoding is one pass in C."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from modelyard.gateway.lanes import BrokenStream, Usage


class TokenDetails(Struct):
    reasoning_tokens: int | None = None


class ChatUsage(Usage):
    completion_tokens_details: TokenDetails | None = None

    @property
    def output_tokens(self) -> int:
        return self.completion_tokens or 0

    @property
    def reasoning_tokens(self) -> int:
        details = self.completion_tokens_details
        return (details.reasoning_tokens or 0) if details is not None else 0


class Function(Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct):
    """A call, or in a stream a piece of one: the first has id and name, the others more of the arguments."""

    index: int = 0
    id: str | None = None
    function: Function | None = None


class Message(Struct):
    """A whole message, or what a stream adds to it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None

    @property
    def thought(self) -> str:
        """The reasoning, by whichever name the engine calls it."""
        return self.reasoning or self.reasoning_content or ""

    @property
    def says_something(self) -> bool:
        return bool(self.content or self.thought or self.tool_calls or self.refusal)


class Choice(Struct):
    """`stop_reason` is vLLM's: the stop text that was met, where it was one."""

    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    index: int = 0

    @property
    def stop_text(self) -> str | None:
        return self.stop_reason if isinstance(self.stop_reason, str) else None


class Completion(Struct):
    """A whole answer, or one event of a stream."""

    choices: list[Choice] = []
    usage: ChatUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Completion).decode


def decode(data: bytes) -> Completion:
    """Raises BrokenStream where `data` is no chat answer."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenStream(f"the engine's answer is no chat answer: {error}") from None


def only_choice(answer: Completion) -> tuple[Choice, Message]:
    """The one choice of a whole answer. Raises BrokenStream where there is none."""
    choice = answer.choices[0] if answer.choices else None
    if choice is None or choice.message is None:
        raise BrokenStream("the engine's answer holds no message")
    return choice, choice.message
