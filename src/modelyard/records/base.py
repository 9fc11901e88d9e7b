"""How records are written and read: one codec, one way to refuse what another version wrote."""

from __future__ import annotations

from typing import TypeVar, dataclass_transform

import msgspec

from modelyard.errors import ModelyardError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frozen value. Records that stand alone on disk or on a wire carry a tag with name and version (`schema`).

    msgspec does not pass `kw_only` on to subclasses: at runtime their fields may be given by position too. The type
    checker refuses that, so no subclass has to repeat it."""


class UnreadableRecord(ModelyardError):
    """Bytes that are not the record they should be: another version, or damaged."""


_encoder = msgspec.json.Encoder()


def encode(record: msgspec.Struct) -> bytes:
    """JSON in one line, without a line break."""
    return _encoder.encode(record)


def decode(data: bytes, kind: type[T]) -> T:
    """Raises UnreadableRecord where `data` is not a `kind`; the message names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        name = getattr(kind, "__name__", str(kind))  # a union has none
        raise UnreadableRecord(f"not a {name}: {error}") from error
