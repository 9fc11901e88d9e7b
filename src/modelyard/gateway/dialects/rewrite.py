"""The rewrite lane: a chat stream that becomes another dialect's, event by event.

Each event is decoded once into types and told once; nothing else is kept of the stream. What ends it is held until the
engine's answer is whole, because the journal's record comes before the client's last byte."""

from __future__ import annotations

from typing import Protocol

from modelyard.gateway.dialects.chat import ChatUsage, Choice, Message, decode
from modelyard.gateway.dialects.sse import EventSplitter
from modelyard.gateway.lanes import LAST_CHUNK, BrokenStream, EngineErred, Usage, chunk

_DONE = b"[DONE]"


class Translator(Protocol):
    """A state machine: pieces of a chat answer in, events of a dialect out."""

    def feed(self, choice: Choice, delta: Message) -> bytes: ...

    def close(self, usage: ChatUsage | None) -> bytes: ...

    def fail(self, text: str, code: str) -> bytes: ...


class RewriteLane:
    """An event stream that is told anew. `events` counts what was told, the fallback where no usage ever comes."""

    __slots__ = ("_chunked", "_closing", "_splitter", "_translator", "events", "has_delta", "usage")
    verdict = ""

    def __init__(self, translator: Translator, *, chunked: bool) -> None:
        self._translator, self._chunked = translator, chunked
        self._splitter = EventSplitter()
        self._closing: bytes | None = None
        self.usage: Usage | None = None
        self.events = 0
        self.has_delta = False

    def passes(self, raw: bytes) -> bool:
        return False

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        """What goes to the client for one read; b"" if nothing yet. Raises BrokenStream."""
        told = b""
        for data in self._splitter.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces)):
            told += self._tell(data)
        if done:
            if self._closing is None or not self._splitter.at_rest:
                raise BrokenStream("the engine ended the stream without its end marker")
            told += self._closing
        if not self._chunked:
            return told
        framed = chunk(told) if told else b""
        return framed + LAST_CHUNK if done else framed

    def failed(self, message: str, code: str) -> bytes:
        return self._translator.fail(message, code)

    def _tell(self, data: bytes) -> bytes:
        if data == _DONE:
            usage = self.usage
            self._closing = self._translator.close(usage if isinstance(usage, ChatUsage) else None)
            return b""
        if self._closing is not None:
            raise BrokenStream("the engine went on after its end marker")
        answer = decode(data)
        if answer.error is not None:
            raise EngineErred("the engine reported an error in the middle of its answer")
        if answer.usage is not None:
            self.usage = answer.usage
        told = b""
        for choice in answer.choices:
            if choice.index == 0 and choice.delta is not None:
                told += self._translator.feed(choice, choice.delta)
                self.has_delta = self.has_delta or choice.delta.says_something
        if told:
            self.events += 1
        return told
