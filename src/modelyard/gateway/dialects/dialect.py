"""What a dialect is to the rest of the gateway: requests read, answers turned back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from modelyard.gateway.fields import Parsed, parse
from modelyard.gateway.lanes import Usage
from modelyard.gateway.refusals import Refusal

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
MESSAGES, COUNT_TOKENS, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"


class Lane(Protocol):
    """How a stream travels (lanes.RawLane is one). `events` counts pieces with content; `has_delta` once one of them
    was a piece of the answer, not only of its frame; `usage` is the engine's; `verdict` is what a check of the whole
    answer found wrong, "" where nothing was, or none is made."""

    @property
    def usage(self) -> Usage | None: ...

    @property
    def events(self) -> int: ...

    @property
    def has_delta(self) -> bool: ...

    @property
    def verdict(self) -> str: ...

    def passes(self, raw: bytes) -> bool: ...

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        """What goes to the client for one read; b"" if nothing yet. Raises BrokenStream."""
        ...

    def failed(self, message: str, code: str) -> bytes:
        """The event that tells the client that this stream cannot go on."""
        ...


class NoWords(Exception):
    """The engine has answered, and the dialect has no words for it: what the client is told instead, and what the
    answer cost all the same."""

    def __init__(self, refusal: Refusal, usage: Usage | None) -> None:
        super().__init__(refusal.message)
        self.refusal, self.usage = refusal, usage


class Speaker(Protocol):
    """Gives one answer of an engine in the client's dialect."""

    def lane(self, *, usage_asked: bool, chunked: bool) -> Lane: ...

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        """The client's body, the usage, and what a check of the answer found wrong ("" if nothing). Raises
        BrokenStream where the engine's answer is none, NoWords where the dialect has none for it."""
        ...


class Sending(msgspec.Struct, frozen=True):
    """Where a request goes at the engine, with which body, and who turns the answer back (None: nobody need).
    `names` are those of the engine's fields that the client calls otherwise."""

    endpoint: str
    body: bytes
    speaker: Speaker | None
    names: dict[str, str]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A request in a dialect. `parsed` is the same as a request to `over`, which says what it may cost; `native` is
    its body for an engine that has the endpoint itself, with the fields that it is given in place of the client's.
    `names` are those of chat fields that the dialect calls otherwise; `stripped` are fields that it does not know."""

    endpoint: str
    over: str
    parsed: Parsed
    native: Callable[[dict[str, Any]], bytes]
    native_speaker: Speaker | None
    speaker: Speaker | None
    names: dict[str, str]
    stripped: frozenset[str]


def as_chat(fields: dict[str, Any], names: dict[str, str]) -> Parsed:
    """`fields` as a chat request, with every check that one goes through. Raises Refusal in the dialect's names."""
    try:
        built = msgspec.to_builtins({name: value for name, value in fields.items() if value is not None})
        return parse((built, msgspec.json.encode(built)), CHAT)
    except Refusal as refusal:
        raise renamed(refusal, names) from None


def renamed(refusal: Refusal, names: Mapping[str, str]) -> Refusal:
    """The refusal of a chat field under the name that the client knows."""
    param = refusal.param or ""
    if (theirs := names.get(param)) is not None:
        refusal.message = refusal.message.replace(param, theirs, 1)
        refusal.param = theirs
    return refusal
