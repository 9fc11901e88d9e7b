"""The longest answer that a key may ask for, held before anything is made of the request."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from modelyard.gateway.dialects.dialect import renamed
from modelyard.gateway.fields import Parsed
from modelyard.gateway.refusals import invalid

_MAX_TOKENS, _MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"


def hold_to(most: int, parsed: Parsed, names: Mapping[str, str], context_tokens: int) -> None:
    """Where the request states no longest answer it asks for `most` from here on, unless the deployment's context
    ends before that. `names` are the client's for these fields. Raises Refusal (400) where it states a longer one."""
    call = parsed.call
    # A call that is answered without tokens says 0 here.
    stated = {name: getattr(call, name, None) for name in (_MAX_TOKENS, _MAX_COMPLETION_TOKENS)}
    for name, asked in stated.items():
        if asked is not None and asked > most:
            refusal = invalid(f"{name} is {asked}: this key may ask for an answer of at most {most} tokens", name)
            raise renamed(refusal, names)
    if all(asked is None for asked in stated.values()) and (not context_tokens or most < context_tokens):
        name = _MAX_COMPLETION_TOKENS if _MAX_COMPLETION_TOKENS in names else _MAX_TOKENS
        setattr(call, name, most)
        parsed.fields[name] = most
        parsed.compact = msgspec.json.encode(parsed.fields)
