"""How a response travels to the client, decided before its first byte.

Raw: the bytes of an event stream pass untouched; we asked the engine for usage and only withhold the trailing usage
event from a client that did not ask. Whole: a plain JSON answer is held until it is complete, because its record in
the journal comes first."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from modelyard.gateway.limits import WIRE

_USAGE = b'"usage"'
_END_OF_EVENT = b"\n\n"
_DONE = b"data: [DONE]"


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


class _Answer(msgspec.Struct):
    usage: Usage | None = None


_event_decoder = msgspec.json.Decoder(_Event)
_answer_decoder = msgspec.json.Decoder(_Answer)


class BrokenStream(Exception):
    """The engine's stream cannot be relayed truthfully."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


@dataclass(slots=True)
class RawLane:
    """An event stream. `events` counts relayed reads with content, the fallback where no usage ever comes."""

    usage_asked: bool
    chunked: bool
    usage: Usage | None = None
    events: int = 0
    ended: bool = False
    _held: bytes = b""
    _last: bytes = b""

    def read(self, raw: bytes, pieces: list[bytes], between_chunks: bool, done: bool) -> bytes:
        """What goes to the client for one read of the engine's connection; b"" if nothing yet.

        The untouched way is taken when the read ends between chunks and between events, holds no usage, and nothing
        is held back from before."""
        if not pieces:
            return self._finish(raw if self.chunked else b"") if done else b""
        self.events += 1
        if not between_chunks or self._held or not self.chunked:
            return self._rewrite(b"".join(pieces), done)
        for piece in pieces:
            if _USAGE in piece or not piece.endswith(_END_OF_EVENT):
                return self._rewrite(b"".join(pieces), done)
        self._last = pieces[-1]
        return self._finish(raw) if done else raw

    def _finish(self, out: bytes) -> bytes:
        """The stream is whole only if the engine said so."""
        if self._held or not self._last.rstrip().endswith(_DONE):
            raise BrokenStream("the engine ended the stream without its end marker")
        self.ended = True
        return out

    def _rewrite(self, body: bytes, done: bool) -> bytes:
        # Some servers end lines with CRLF; JSON holds no raw line break, so nothing else can be meant.
        body = (self._held + body).replace(b"\r\n", b"\n")
        end = body.rfind(_END_OF_EVENT) + 2 if _END_OF_EVENT in body else 0
        self._held = body[end:]
        if len(self._held) > WIRE.upstream_body_bytes:
            raise BrokenStream("an event of the engine has no end")
        out = body[:end]
        if out:
            self._last = out
        if _USAGE in out:
            out = b"".join(event + _END_OF_EVENT for event in out[:-2].split(_END_OF_EVENT) if self._keep(event))
        framed = chunk(out) if out and self.chunked else out
        if not done:
            return framed
        return self._finish(framed + (LAST_CHUNK if self.chunked else b""))

    def _keep(self, event: bytes) -> bool:
        """Learns usage from an event; False for a usage-only event that the client did not ask for."""
        if _USAGE not in event or not event.startswith(b"data:"):
            return True
        try:
            parsed = _event_decoder.decode(event[5:])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return True
        if parsed.usage is None:
            return True
        self.usage = parsed.usage
        return bool(parsed.choices) or self.usage_asked


@dataclass(slots=True)
class WholeLane:
    """A plain answer, held until it is complete."""

    parts: list[bytes] = field(default_factory=list[bytes])
    size: int = 0

    def read(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.parts.append(piece)
            self.size += len(piece)
        if self.size > WIRE.upstream_body_bytes:
            raise BrokenStream("the engine's answer is larger than the gateway holds")

    def body(self) -> bytes:
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


def usage_of(answer: bytes) -> Usage | None:
    """The usage of a plain answer. Raises BrokenStream where the answer is no JSON object."""
    try:
        return _answer_decoder.decode(answer).usage
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrokenStream(f"the engine's answer is not JSON: {error}") from None
