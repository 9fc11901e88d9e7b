"""A model's thoughts under both names: engines call them `reasoning` or `reasoning_content`, clients know one of them.

Only events that hold the one get the other beside it; all else of the stream travels raw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from modelyard.gateway.dialects.sse import encode_json
from modelyard.gateway.lanes import RawLane, Usage, usage_of

Field = Literal["reasoning", "reasoning_content"]
_OTHER: dict[Field, Field] = {"reasoning": "reasoning_content", "reasoning_content": "reasoning"}
_decode = msgspec.json.Decoder().decode


class BothNamesLane(RawLane):
    """A raw lane for engines that are known to tell thoughts. `field` is their name for them."""

    __slots__ = ("_field", "_marker", "_nothing")

    def __init__(self, usage_asked: bool, chunked: bool, field: Field) -> None:
        super().__init__(usage_asked, chunked)
        self._field: Field = field
        self._marker = b'"%b":' % field.encode()
        self._nothing = self._marker + b"null"

    def passes(self, raw: bytes) -> bool:
        return not self._holds(raw) and super().passes(raw)

    def read(self, raw: bytes, pieces: list[bytes], done: bool) -> bytes:
        return super().read(b"" if self._holds(raw) else raw, pieces, done)

    def _holds(self, data: bytes) -> bool:
        """Quotes inside JSON strings are escaped: no text looks like the key."""
        return self._marker in data and data.count(self._marker) != data.count(self._nothing)

    def _told(self, events: bytes) -> bytes:
        if not self._holds(events):
            return events
        return b"".join(self._with_both(one) + b"\n\n" for one in events[:-2].split(b"\n\n"))

    def _with_both(self, event: bytes) -> bytes:
        if not self._holds(event) or not event.startswith(b"data:") or b"\n" in event:
            return event
        return b"data: " + with_both_names(event[5:], self._field)


def with_both_names(data: bytes, field: Field) -> bytes:
    """A chat answer or event with each thought under both names; as it was where it is none."""
    if b'"%b":' % field.encode() not in data:
        return data
    try:
        value: Any = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return data
    other, found = _OTHER[field], False
    for choice in _items(_part(value, "choices")):
        for name in ("delta", "message"):
            holder = _part(choice, name)
            thought = _part(holder, field)
            if isinstance(thought, str):
                found = True
                holder.setdefault(other, thought)
    return encode_json(value) if found else data


def _part(value: Any, name: str) -> Any:
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None


def _items(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class BothNamesSpeaker:
    """Gives answers of an engine that calls thoughts `field`."""

    field: Field

    def lane(self, *, usage_asked: bool, chunked: bool) -> BothNamesLane:
        return BothNamesLane(usage_asked, chunked, self.field)

    def whole(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        usage = usage_of(body)
        return with_both_names(body, self.field), usage, ""
