"""Server-sent events: cutting an engine's bytes into them, and writing our own."""

from __future__ import annotations

from typing import Any

import msgspec

from modelyard.gateway.lanes import BrokenStream
from modelyard.gateway.limits import WIRE
from modelyard.gateway.line_ends import escaped

encode_json = msgspec.json.Encoder().encode


def event(name: str, value: Any) -> bytes:
    """One event with a JSON value. JSON escapes CR and LF, so no text can end a line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), escaped(encode_json(value)))


class EventSplitter:
    """Cuts bytes, however they are split, into the data of whole events; comments and event names are left out."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    @property
    def at_rest(self) -> bool:
        """Whether nothing of an unfinished event is held."""
        return not self._held

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are whole now. Raises BrokenStream where one grows without end."""
        data = self._held + data
        carry = b""
        if b"\r" in data:
            # Some servers end lines with CRLF. A CR at the end may be the first half of one.
            if data.endswith(b"\r"):
                data, carry = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n")
        *whole, rest = data.split(b"\n\n")
        self._held = rest + carry
        if len(self._held) > WIRE.upstream_event_bytes:
            raise BrokenStream("an event of the engine has no end")
        return [found for text in whole if (found := _data_of(text))]


def _data_of(text: bytes) -> bytes:
    if text.startswith(b"data:") and b"\n" not in text:
        return text[5:].strip()
    lines = [line[5:].strip() for line in text.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)
