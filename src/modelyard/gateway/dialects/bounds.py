"""The bounded types that requests in every dialect are made of, and what a violation is called."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import Refusal, invalid
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

# "Expected `int` >= 1 - at `$.max_tokens`", "Object missing required field `model`"
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<at>(?P<field>\w*).*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")


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


def explained(error: msgspec.ValidationError) -> Refusal:
    """What msgspec found, as a refusal that names the field."""
    match = _AT.match(str(error))
    assert match is not None
    what, at, field = match["what"], match["at"] or "", match["field"] or ""
    if not at and (missing := _MISSING.search(what)) is not None:
        return invalid(f"{missing[1]} is missing", missing[1])
    if at.endswith(".type") and what.startswith(("Invalid value", "Invalid enum value")):
        what += "; nothing but text and calls of the client's own tools is read here, and no address is ever fetched"
    return invalid(f"{at}: {what}"[:512], field or None)
