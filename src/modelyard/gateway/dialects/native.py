"""Answers of engines that speak the dialect themselves: events and bodies pass as they came; usage is read from them.

The end is held until the engine's answer is whole, as everywhere; an error of the engine's own is told in our words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from modelyard.gateway.dialects.sse import EventSplitter, event
from modelyard.gateway.lanes import LAST_CHUNK, BrokenStream, CachedTokens, EngineErred, Usage, chunk
from modelyard.gateway.line_ends import escaped

MESSAGE_ENDS = frozenset({"message_stop"})
RESPONSE_ENDS = frozenset({"response.completed", "response.incomplete"})
_ERRORS = frozenset({"error", "response.failed"})


class _Counts(Struct):
    """Usage as Anthropic and Responses state it; the first counts cached tokens beside `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int | None = 0
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    input_tokens_details: CachedTokens | None = None

    @property
    def states_prompt(self) -> bool:
        return bool(self.input_tokens or self.cache_read_input_tokens or self.cache_creation_input_tokens)

    def usage(self, output_tokens: int | None = None) -> Usage:
        """With another count of the answer, if one is given."""
        output_tokens = self.output_tokens if output_tokens is None else output_tokens
        within = self.input_tokens_details.cached_tokens if self.input_tokens_details is not None else None
        beside = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        cached = CachedTokens(within if within is not None else self.cache_read_input_tokens or 0)
        return Usage(self.input_tokens + beside, output_tokens, cached)


class _Body(Struct):
    usage: _Counts | None = None


class _Event(Struct):
    type: str = ""
    usage: _Counts | None = None
    message: _Body | None = None
    response: _Body | None = None
    sequence_number: int = -1


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_body = msgspec.json.Decoder(_Body).decode


def anthropic_error(text: str, code: str) -> bytes:
    kind = "overloaded_error" if code == "gateway_stopped" else "api_error"
    return event("error", {"type": "error", "error": {"type": kind, "message": text}})


def responses_error(text: str, code: str, number: int) -> bytes:
    """An `error` event as documented, and what OpenAI's clients raise an error for."""
    fields: dict[str, Any] = {"code": code, "message": text, "param": None}
    error = {**fields, "type": "server_error"}
    return event("error", {"type": "error", **fields, "sequence_number": number, "error": error})


class NativeLane:
    """A stream in the client's own dialect."""

    __slots__ = ("_begun", "_chunked", "_closing", "_ends", "_number", "_splitter", "events", "has_delta", "usage")
    verdict = ""

    def __init__(self, ends: frozenset[str], *, chunked: bool) -> None:
        self._ends, self._chunked = ends, chunked
        self._splitter = EventSplitter()
        self._closing = b""
        self._number = -1
        # A message states its prompt at its beginning, and only the answer's tokens at its end. Who leaves in between
        # has had more than the beginning knows: it is no usage by itself.
        self._begun = _Counts()
        self.usage: Usage | None = None
        self.events = 0
        self.has_delta = False

    def passes(self, raw: bytes) -> bool:
        return False

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        told = b""
        for data in self._splitter.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces)):
            told += self._tell(data)
        if done:
            if not self._closing or not self._splitter.at_rest:
                raise BrokenStream("the engine ended the stream without its last event")
            told += self._closing
        if not self._chunked:
            return told
        framed = chunk(told) if told else b""
        return framed + LAST_CHUNK if done else framed

    def failed(self, message: str, code: str) -> bytes:
        if self._ends is MESSAGE_ENDS:
            return anthropic_error(message, code)
        return responses_error(message, code, self._number + 1)

    def _tell(self, data: bytes) -> bytes:
        try:
            seen = _decode_event(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BrokenStream(f"an event of the engine is not JSON: {error}") from None
        if seen.type in _ERRORS:
            raise EngineErred("the engine reported an error in the middle of its answer")
        if self._closing:
            raise BrokenStream("the engine went on after its last event")
        self.events += 1
        self.has_delta = self.has_delta or seen.type.endswith("delta")
        self._number = seen.sequence_number
        if seen.message is not None:
            self._begun = seen.message.usage or self._begun
        counts = seen.usage or (seen.response.usage if seen.response is not None else None)
        if counts is not None:
            self.usage = counts.usage() if counts.states_prompt else self._begun.usage(counts.output_tokens)
        told = b"event: %b\ndata: %b\n\n" % (seen.type.encode(), escaped(data))
        if seen.type in self._ends:
            self._closing = told
            return b""
        return told


@dataclass(frozen=True, slots=True)
class NativeSpeaker:
    """Lets an answer pass, and learns its usage."""

    ends: frozenset[str]

    def lane(self, *, usage_asked: bool, chunked: bool) -> NativeLane:
        return NativeLane(self.ends, chunked=chunked)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        try:
            counts = _decode_body(body).usage
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BrokenStream(f"the engine's answer is not JSON: {error}") from None
        return body, counts.usage() if counts is not None else None, ""
