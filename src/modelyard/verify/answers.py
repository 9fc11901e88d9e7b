"""OpenAI answers, parsed strictly: what does not have its form is an error that says what came instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from modelyard.errors import ModelyardError
from modelyard.records.base import Record, decode

T = TypeVar("T")


class WrongAnswer(ModelyardError):
    """The replica answered something that the protocol does not allow; the message says what came."""


class Usage(Record):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    def __str__(self) -> str:
        return f"{self.prompt_tokens}+{self.completion_tokens}={self.total_tokens} tokens"


class _Message(Record):
    content: str


class _Choice(Record):
    finish_reason: Literal["stop", "length"]
    message: _Message | None = None
    text: str | None = None


class _Answer(Record):
    object: Literal["chat.completion", "text_completion"]
    choices: tuple[_Choice]
    usage: Usage


class _Delta(Record):
    content: str | None = None


class _ChunkChoice(Record):
    delta: _Delta = _Delta()
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Record):
    """`choices` has no default: an error in the middle of a stream must not pass for an empty chunk."""

    choices: tuple[_ChunkChoice, ...]
    usage: Usage | None = None


class _Fault(Record):
    message: str
    type: str


class _FaultBody(Record):
    error: _Fault


@dataclass(frozen=True, slots=True)
class Output:
    """What one request brought. `usage` is None only for a stream that reported none."""

    text: str
    finish_reason: str
    usage: Usage | None

    def __str__(self) -> str:
        return f"{quoted(self.text)}, finish_reason {self.finish_reason}, {self.usage or 'no usage'}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a request was refused: `message` and `kind` are of the OpenAI error body, empty where there was none."""

    status: int
    kind: str
    message: str


def quoted(text: str, limit: int = 120) -> str:
    """`text` fit for a terminal and a record: escaped, bounded."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def whole(status: int, body: bytes) -> Output:
    """The output of a request that was not streamed."""
    expect_ok(status, body)
    answer = parsed(body, _Answer)
    choice = answer.choices[0]
    text = choice.message.content if choice.message else choice.text
    if text is None or (choice.message is None) != (answer.object == "text_completion"):
        raise WrongAnswer(f"a {answer.object} without its text: {quoted(body.decode(errors='replace'))}")
    return Output(text, choice.finish_reason, answer.usage)


def streamed(status: int, body: bytes) -> Output:
    """The output of a streamed request, its events put together."""
    expect_ok(status, body)
    *events, last = stream_data(body) or [b""]
    if last != b"[DONE]":
        raise WrongAnswer("the stream ended without [DONE]")
    chunks = [parsed(event, _Chunk) for event in events]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    finish_reasons = [choice.finish_reason for choice in choices if choice.finish_reason is not None]
    if len(finish_reasons) != 1:
        raise WrongAnswer(f"a stream with {len(finish_reasons)} finish reasons instead of one")
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    text = "".join(choice.delta.content or choice.text or "" for choice in choices)
    return Output(text, finish_reasons[0], usages[-1] if usages else None)


def refusal(status: int, body: bytes) -> Refusal:
    try:
        fault = parsed(body, _FaultBody).error
    except WrongAnswer:
        return Refusal(status, "", "")
    return Refusal(status, fault.type, fault.message)


def stream_data(body: bytes) -> Sequence[bytes]:
    """What the events of a stream hold."""
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    return [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]


def expect_ok(status: int, body: bytes) -> None:
    """Raises WrongAnswer."""
    if status != 200:
        raise WrongAnswer(f"HTTP {status}: {quoted(body.decode(errors='replace'), 200)}")


def parsed(body: bytes, kind: type[T]) -> T:
    """Raises WrongAnswer that shows what came."""
    try:
        return decode(body, kind)
    except (ModelyardError, RecursionError) as error:
        reason = error.__cause__ or error
        raise WrongAnswer(f"not an OpenAI answer: {reason}: {quoted(body.decode(errors='replace'))}") from error
