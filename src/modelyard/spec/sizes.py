"""Human sizes: `512MiB`, `1.5 GB`, `2GiB`; a bare number is bytes."""

from __future__ import annotations

import re
from typing import Any

from modelyard.spec import price

_POWERS = ("", "k", "m", "g", "t")

PATTERN = r"^([0-9]+(?:\.[0-9]+)?) *([KkMmGgTt]?)(i?)[Bb]?$"


class ByteSize(int):
    """A number of bytes that a person may write with a unit (kB, MB, GB, TB; KiB, MiB, GiB, TiB)."""

    @classmethod
    def parse(cls, text: object) -> ByteSize:
        """Raises ValueError, in words that a user can act on, where `text` is no size of at least one byte."""
        found = re.fullmatch(PATTERN, str(text).strip())
        if found is None or isinstance(text, float | bool):
            raise ValueError(f"{text!r} is no size: write for example 1GiB, 512MiB or 1073741824")
        number, prefix, binary = found.groups()
        scale = (1024 if binary else 1000) ** _POWERS.index(prefix.lower())
        size = cls(float(number) * scale if "." in number else int(number) * scale)
        if not 1 <= size <= 1 << 60:
            raise ValueError("must be at least one byte, and no more than a machine can have")
        return size


def show(size_bytes: float) -> str:
    """`1.2 GiB`: for messages; two significant places are enough for a person."""
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def decode_hook(kind: type, value: Any) -> Any:
    """How msgspec reads a ByteSize, and a Price."""
    if kind is ByteSize:
        return ByteSize.parse(value)
    if kind is price.Price:
        return price.Price.parse(value)
    raise NotImplementedError(kind)


def schema_hook(kind: type) -> dict[str, Any]:
    """How a ByteSize and a Price stand in the JSON Schema."""
    if kind is ByteSize:
        return {"anyOf": [{"type": "string", "pattern": PATTERN}, {"type": "integer", "minimum": 1}]}
    if kind is price.Price:
        return {"anyOf": [{"type": "string", "pattern": price.PATTERN}, {"type": "number", "minimum": 0}]}
    raise NotImplementedError(kind)
