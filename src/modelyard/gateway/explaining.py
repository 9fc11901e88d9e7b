"""What msgspec finds wrong with a request, as a refusal that names the field."""

from __future__ import annotations

import re

import msgspec

from modelyard.gateway.refusals import Refusal, invalid

# "Expected `int` >= 1 - at `$.max_tokens`", "Object missing required field `model`"
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<at>(?P<field>\w*).*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_ONLY_TEXT = "; nothing but text and calls of the client's own tools is read here, and no address is ever fetched"


def explained(error: msgspec.ValidationError) -> Refusal:
    match = _AT.match(str(error))
    assert match is not None
    what, at, field = match["what"], match["at"] or "", match["field"] or ""
    if not at and (missing := _MISSING.search(what)) is not None:
        return invalid(f"{missing[1]} is missing", missing[1])
    is_of_a_kind = at.endswith(".type") and what.startswith(("Invalid value", "Invalid enum value"))
    if is_of_a_kind or (field == "messages" and ".content" in at):
        what += _ONLY_TEXT
    return invalid(f"{at}: {what}"[:512], field or None)
