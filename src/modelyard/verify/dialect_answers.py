"""Answers of /v1/messages and /v1/responses and the counts of /tokenize, parsed strictly."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.records.base import Record
from modelyard.verify.answers import WrongAnswer, expect_ok, parsed, quoted, stream_data


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says, in whichever dialect, and what it says that this took."""

    text: str
    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{quoted(self.text)}, {self.input_tokens}+{self.output_tokens} tokens"


class _Usage(Record):
    """Anthropic counts cached tokens beside `input_tokens`, OpenAI within them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)


class _Part(Record):
    type: str
    text: str = ""


class _Message(Record):
    content: tuple[_Part, ...]
    usage: _Usage
    stop_reason: str | None = None


class _Item(Record):
    type: str
    content: tuple[_Part, ...] | None = None


class _Response(Record):
    status: str
    output: tuple[_Item, ...] = ()
    usage: _Usage | None = None


class _Delta(Record):
    type: str = ""
    text: str = ""


class _Event(Record):
    type: str
    message: _Message | None = None
    delta: _Delta | str | None = None
    usage: _Usage | None = None
    response: _Response | None = None


class _Count(Record):
    count: int
    tokens: tuple[int, ...]


class _Prompt(Record):
    prompt: str


def message(status: int, body: bytes) -> Told:
    expect_ok(status, body)
    told = parsed(body, _Message)
    if told.stop_reason is None:
        raise WrongAnswer("a message without a reason for its end")
    return Told(_text(told.content, "text"), told.usage.prompt_tokens, told.usage.output_tokens)


def message_stream(status: int, body: bytes) -> Told:
    """Its events put together: usage at its beginning counts the prompt, at its end the answer."""
    events = _events(status, body, ("message_stop",))
    begun = next((one.message for one in events if one.message is not None), None)
    counts = [one.usage for one in events if one.type == "message_delta" and one.usage is not None]
    if begun is None or not counts:
        raise WrongAnswer(f"a stream of {len(events)} events without a beginning or without usage")
    texts = [one.delta.text for one in events if isinstance(one.delta, _Delta) and one.delta.type == "text_delta"]
    return Told("".join(texts), counts[-1].prompt_tokens or begun.usage.prompt_tokens, counts[-1].output_tokens)


def response(status: int, body: bytes) -> Told:
    expect_ok(status, body)
    return _of_response(parsed(body, _Response))


def response_stream(status: int, body: bytes) -> Told:
    """Its pieces put together, with the usage of its last event, which holds the same text."""
    events = _events(status, body, ("response.completed", "response.incomplete"))
    texts = [one.delta for one in events if one.type == "response.output_text.delta" and isinstance(one.delta, str)]
    last = events[-1].response
    whole = _of_response(last) if last is not None else None
    if whole is None or whole.text != "".join(texts):
        raise WrongAnswer("a stream whose pieces are not the text of its last event")
    return whole


def tokens(status: int, body: bytes) -> tuple[int, ...]:
    expect_ok(status, body)
    told = parsed(body, _Count)
    if told.count != len(told.tokens):
        raise WrongAnswer(f"a count of {told.count} with {len(told.tokens)} tokens")
    return told.tokens


def prompt(status: int, body: bytes) -> str:
    expect_ok(status, body)
    return parsed(body, _Prompt).prompt


def _of_response(told: _Response) -> Told:
    if told.usage is None or told.status not in ("completed", "incomplete"):
        raise WrongAnswer(f"a response that is {told.status}, {'with' if told.usage else 'without'} usage")
    parts = [part for item in told.output if item.type == "message" for part in item.content or ()]
    return Told(_text(tuple(parts), "output_text"), told.usage.input_tokens, told.usage.output_tokens)


def _text(parts: tuple[_Part, ...], kind: str) -> str:
    return "".join(part.text for part in parts if part.type == kind)


def _events(status: int, body: bytes, ends: tuple[str, ...]) -> list[_Event]:
    expect_ok(status, body)
    events = [parsed(data, _Event) for data in stream_data(body) if data != b"[DONE]"]
    if not events or events[-1].type not in ends:
        raise WrongAnswer(f"the stream ended without {ends[0]}")
    return events
