"""The bounded types that requests in every dialect are made of."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from modelyard.gateway.explaining import explained
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.strict_json import Body, parse_object

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=FIELDS.string_characters)]
Tokens = Annotated[int, Meta(ge=1, le=FIELDS.max_tokens)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Stops = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=FIELDS.stop_characters)]], Meta(max_length=FIELDS.stop_strings)
]
Word = Annotated[str, Meta(max_length=64)]
Object = dict[str, Any]

CallT = TypeVar("CallT", bound=msgspec.Struct)


def read_call(body: Body, kind: type[CallT]) -> tuple[CallT, frozenset[str]]:
    """The checked call in a body, and the names of the fields that `kind` does not know. Raises Refusal (400)."""
    fields, _ = parse_object(body, FIELDS)
    try:
        call = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise explained(error) from None
    return call, frozenset(fields).difference(kind.__struct_fields__)


def native_body(call: msgspec.Struct, changes: dict[str, Any]) -> bytes:
    """A checked call for an engine that has the endpoint itself: what the types know of it, with `changes`."""
    return msgspec.json.encode({**msgspec.to_builtins(call), **changes})
