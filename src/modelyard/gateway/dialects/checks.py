"""What a request with tools or a schema may expect of its answer, and whether it got it.

An answer is never changed for failing a check: it is the model's. A whole one says so in a header, and the journal has
it of both. Only requests that offer tools or ask for JSON are looked at, others cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from modelyard.gateway.dialects.chat import Completion, Message, ToolCall, decode, only_choice
from modelyard.gateway.dialects.dialect import Lane, Speaker
from modelyard.gateway.dialects.schema import breaks
from modelyard.gateway.dialects.sse import EventSplitter
from modelyard.gateway.fields import AnyCall, ChatCall
from modelyard.gateway.lanes import BrokenStream, RawLane, Usage, usage_of
from modelyard.gateway.limits import FIELDS


@dataclass(frozen=True, slots=True)
class Expectation:
    """`tools` are the names that may be called; `schema` is what the text must be an instance of (True: any JSON
    object), None where nothing is asked of it."""

    tools: frozenset[str]
    schema: Any

    def verdict(self, said: Message, finish_reason: str | None) -> str:
        """What is wrong with a complete answer, in one word of the journal; "" if nothing. An answer that was cut off
        at its limit promises nothing."""
        if finish_reason not in ("stop", "tool_calls"):
            return ""
        for call in said.tool_calls or ():
            name = call.function.name if call.function is not None else None
            if name not in self.tools:
                return "tool_call_unknown"
            if not _is_object((call.function.arguments if call.function is not None else None) or "{}"):
                return "tool_arguments_invalid"
        if self.schema is None or said.tool_calls or said.refusal:
            return ""
        try:
            value = msgspec.json.decode(said.content or "")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "answer_not_json"
        return "answer_breaks_schema" if breaks(value, self.schema) else ""


_ANY_OBJECT = {"type": "object"}


def expectation(call: AnyCall) -> Expectation | None:
    """None for the usual request, which expects nothing that could be checked."""
    if type(call) is not ChatCall or (call.tools is None and call.response_format is None):
        return None
    names = (_inner(tool, "function").get("name") for tool in call.tools or ())
    # What a tool's name may be is the engine's to say; no answer can call one that is no text.
    tools = frozenset(name for name in names if name and isinstance(name, str))
    form = call.response_format or {}
    schema: Any = None
    if form.get("type") == "json_object":
        schema = _ANY_OBJECT
    elif form.get("type") == "json_schema":
        schema = _inner(form, "json_schema").get("schema", _ANY_OBJECT)
    return Expectation(tools, schema) if tools or schema is not None else None


def _inner(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


@dataclass(slots=True)
class _Heard:
    """An answer put together from the events of a stream; `whole` until there was too much of it."""

    content: list[str] = field(default_factory=list[str])
    calls: dict[int, tuple[ToolCall, list[str]]] = field(default_factory=dict[int, tuple[ToolCall, list[str]]])
    finish_reason: str | None = None
    refusal: str | None = None
    size: int = 0

    @property
    def whole(self) -> bool:
        return self.size <= FIELDS.string_characters

    def add(self, answer: Completion) -> None:
        for choice in answer.choices:
            delta = choice.delta
            if choice.index != 0 or delta is None:
                continue
            self.finish_reason = choice.finish_reason or self.finish_reason
            self.refusal = delta.refusal or self.refusal
            if delta.content:
                self.content.append(delta.content)
                self.size += len(delta.content)
            for part in delta.tool_calls or ():
                _, arguments = self.calls.setdefault(part.index, (part, []))
                if part.function is not None and part.function.arguments:
                    arguments.append(part.function.arguments)
                    self.size += len(part.function.arguments)

    def message(self) -> Message:
        calls: list[ToolCall] = []
        for call, arguments in self.calls.values():
            if call.function is not None:
                call.function.arguments = "".join(arguments)
            calls.append(call)
        return Message(content="".join(self.content), tool_calls=calls or None, refusal=self.refusal)


class CheckedLane:
    """Another lane, with an ear to what goes through it. `verdict` is known when the stream is whole."""

    __slots__ = ("_expectation", "_heard", "_lane", "_splitter", "verdict")

    def __init__(self, lane: Lane, expectation: Expectation) -> None:
        self._lane, self._expectation = lane, expectation
        self._splitter = EventSplitter()
        self._heard = _Heard()
        self.verdict = ""

    @property
    def usage(self) -> Usage | None:
        return self._lane.usage

    @property
    def events(self) -> int:
        return self._lane.events

    @property
    def has_delta(self) -> bool:
        return self._lane.has_delta

    def passes(self, raw: bytes) -> bool:
        return False

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        out = self._lane.read(raw, pieces, done)
        if self._heard.whole:
            for data in self._splitter.feed(b"".join(pieces)):
                if data != b"[DONE]":
                    self._listen(data)
            if done and self._heard.whole:
                self.verdict = self._expectation.verdict(self._heard.message(), self._heard.finish_reason)
        return out

    def _listen(self, data: bytes) -> None:
        """What is no chat event cannot be checked; whether it may pass is the other lane's to say."""
        try:
            self._heard.add(decode(data))
        except BrokenStream:
            self._heard.size = FIELDS.string_characters + 1

    def failed(self, message: str, code: str) -> bytes:
        return self._lane.failed(message, code)


class PlainSpeaker:
    """Gives answers as they come."""

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return RawLane(usage_asked, chunked)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        return body, usage_of(body), ""


@dataclass(frozen=True, slots=True)
class CheckingSpeaker:
    """Another speaker, whose answers are looked at."""

    speaker: Speaker
    expectation: Expectation

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane:
        return CheckedLane(self.speaker.lane(usage_asked=usage_asked, chunked=chunked), self.expectation)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        out, usage, _ = self.speaker.whole(body)
        try:
            choice, said = only_choice(decode(body))
        except BrokenStream:
            return out, usage, ""
        return out, usage, self.expectation.verdict(said, choice.finish_reason)
