"""How a response travels to the client, decided before its first byte.

Raw: the bytes of an event stream pass untouched; we asked the engine for usage and only withhold the trailing usage
event from a client that did not ask. Whole: a plain JSON answer is held until it is complete, because its record in
the journal comes first."""

from __future__ import annotations

from typing import Any

import msgspec

from modelyard.gateway.limits import WIRE
from modelyard.gateway.line_ends import escaped, hold_ends
from modelyard.gateway.refusals import error_event

_USAGE = b'"usage"'
# How an event begins that tells of a failure. Inside a JSON string quotes are escaped: no text of a model looks so.
_ERROR = b'{"error"'
_END_OF_EVENT = b"\n\n"
_END_OF_JSON_EVENT = b"}\n\n"
_JSON_BEGINS = (b"data: {", b"data:{")
_COLON = 58
_DONE = (b"data: [DONE]", b"data:[DONE]")


class CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Token counts as the engine states them."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: CachedTokens | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class _Event(msgspec.Struct):
    usage: Usage | None = None
    choices: list[msgspec.Raw] | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str = ""


class _Piece(msgspec.Struct):
    choices: list[_Choice] | None = None


class _ErrorEvent(msgspec.Struct):
    error: Any = None


class _Answer(msgspec.Struct):
    usage: Usage | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_piece = msgspec.json.Decoder(_Piece).decode
_decode_error = msgspec.json.Decoder(_ErrorEvent).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def _has_usage(data: bytes) -> bool:
    """Some engines put a null into every event: those need no look inside."""
    return _USAGE in data and data.count(_USAGE) != data.count(b'"usage":null') + data.count(b'"usage": null')


class BrokenStream(Exception):
    """The engine's stream cannot be relayed truthfully."""


class EngineErred(BrokenStream):
    """The engine says itself that it failed."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


class RawLane:
    """An event stream. `events` counts pieces with content, the fallback where no usage ever comes. `has_delta` once an
    event held a piece of the answer: until then nothing has been said that another replica would not say again.
    `verdict` is what a check of the answer found wrong, where one is made (dialects.checks)."""

    __slots__ = ("_chunked", "_held", "_last", "_usage_asked", "events", "has_delta", "usage")
    verdict = ""

    def __init__(self, usage_asked: bool, chunked: bool) -> None:
        self._usage_asked, self._chunked = usage_asked, chunked
        self.usage: Usage | None = None
        self.events = 0
        self.has_delta = False
        self._held: bytes = b""
        self._last: bytes = b""

    def passes(self, raw: bytes) -> bool:
        """Whether `raw`, which is one whole chunk that ends an event, may reach the client as it is."""
        if self._held or not self._chunked or _has_usage(raw) or _ERROR in raw or hold_ends(raw):
            return False
        self.events += 1
        self._last = raw
        return True

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        """What goes to the client for one read of the engine's connection; b"" if nothing yet.

        `raw` is not empty only where it is made of whole chunks: then its bytes are used if each chunk ends an event,
        none holds usage or what clients may take for a line's end, and nothing is held back from before."""
        self.events += len(pieces)
        if not pieces:
            return self._finish() if done else b""
        if not raw or self._held or not self._chunked or done or _has_usage(raw) or _ERROR in raw or hold_ends(raw):
            return self._rewrite(b"".join(pieces), done)
        for piece in pieces:
            if not piece.endswith(_END_OF_JSON_EVENT):
                return self._rewrite(b"".join(pieces), done)
        self._last = pieces[-1]
        if not self.has_delta:
            self.has_delta = any(map(holds_delta, pieces))
        return raw

    def _finish(self) -> bytes:
        """The stream is whole only if the engine said so."""
        if self._held or not self._last.rstrip().endswith(_DONE):
            raise BrokenStream("the engine ended the stream without its end marker")
        return LAST_CHUNK if self._chunked else b""

    def _rewrite(self, body: bytes, done: bool) -> bytes:
        # Some servers end lines with CRLF; JSON holds no raw line break, so nothing else can be meant.
        body = (self._held + body).replace(b"\r\n", b"\n")
        end = body.rfind(_END_OF_EVENT) + 2 if _END_OF_EVENT in body else 0
        self._held = body[end:]
        if len(self._held) > WIRE.upstream_event_bytes:
            raise BrokenStream("an event of the engine has no end")
        out = body[:end]
        if out:
            self._last = out
        if _ERROR in out:
            _refuse_errors(out)
        if _END_OF_EVENT in out.replace(_END_OF_JSON_EVENT, b""):
            _refuse_halves(out)
        if out and not self.has_delta:
            self.has_delta = holds_delta(out)
        if _has_usage(out):
            out = b"".join(event + _END_OF_EVENT for event in out[:-2].split(_END_OF_EVENT) if self._keep(event))
        out = escaped(self._told(out))
        framed = chunk(out) if out and self._chunked else out
        return framed + self._finish() if done else framed

    def _told(self, events: bytes) -> bytes:
        """Whole events as the client gets them."""
        return events

    def failed(self, message: str, code: str) -> bytes:
        """The event that tells the client that this stream cannot go on."""
        return error_event(message, code=code)

    def _keep(self, event: bytes) -> bool:
        """Learns usage from an event; False for a usage-only event that the client did not ask for."""
        if not _has_usage(event) or not event.startswith(b"data:"):
            return True
        try:
            parsed = _decode_event(event[5:])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return True
        if parsed.usage is None:
            return True
        self.usage = parsed.usage
        return bool(parsed.choices) or self._usage_asked


def holds_delta(events: bytes) -> bool:
    """Whether whole events hold a piece of an answer. The role alone is none, nor is a comment, a reason to finish or
    an empty text; what we cannot read is one."""
    if events.find(_END_OF_EVENT) == len(events) - 2:
        return _is_delta(events)
    return any(map(_is_delta, events.split(_END_OF_EVENT)))


def _is_delta(event: bytes) -> bool:
    if not event or event[0] == _COLON or event.startswith(_DONE):
        return False
    if not event.startswith(b"data:"):
        return True
    try:
        choices = _decode_piece(event[5:]).choices
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True
    for choice in choices or ():
        delta = choice.delta
        if choice.text or (
            delta is not None
            and (
                delta.content
                or delta.reasoning_content
                or delta.reasoning
                or delta.tool_calls
                or delta.refusal
                or delta.function_call is not None
            )
        ):
            return True
    return False


def _refuse_errors(events: bytes) -> None:
    """An engine that fails in the middle says so in an event, and some then end the stream as if it were whole (vLLM,
    when its core dies, with a [DONE]). Raises EngineErred."""
    for event in events.split(_END_OF_EVENT):
        data = event.removeprefix(b"data:").lstrip()
        if not data.startswith(_ERROR):
            continue
        try:
            error = _decode_error(data).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if error is not None:
            raise EngineErred("the engine reported an error in the middle of its answer")


def _refuse_halves(events: bytes) -> None:
    """An event whose JSON ends in the middle, though its framing is sound. What ends like JSON is not looked into: that
    would cost each piece of every answer more than relaying it does. Raises BrokenStream."""
    for event in events.split(_END_OF_EVENT):
        line = event[event.rfind(b"\n") + 1 :]
        if line.startswith(_JSON_BEGINS) and not line.endswith(b"}"):
            raise BrokenStream("an event of the engine ends in the middle")


class WholeLane:
    """A plain answer, held until it is complete."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def read(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._parts.append(piece)
            self._size += len(piece)
        if self._size > WIRE.upstream_body_bytes:
            raise BrokenStream("the engine's answer is larger than the gateway holds")

    def body(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def usage_of(answer: bytes) -> Usage | None:
    """The usage of a plain answer. Raises BrokenStream where the answer is no JSON object."""
    try:
        return _decode_answer(answer).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenStream(f"the engine's answer is not JSON: {error}") from None
