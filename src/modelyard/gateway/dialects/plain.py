"""Requests with one short answer and no stream: they pass to engines that have the endpoint, and nothing else can
answer them."""

from __future__ import annotations

from functools import partial
from typing import cast

import msgspec
from msgspec import Struct

from modelyard.gateway.dialects.bounds import Name, Object, native_body
from modelyard.gateway.dialects.dialect import Spoken
from modelyard.gateway.fields import AnyCall, Parsed


class PlainCall(Struct, kw_only=True, omit_defaults=True):
    """What the gateway asks of every call, answered for those that stream nothing and have no answer of tokens."""

    model: Name

    @property
    def stream(self) -> None:
        return None

    @property
    def stream_options(self) -> None:
        return None

    @property
    def max_tokens(self) -> int:
        """No answer of tokens: nothing is reserved for one."""
        return 0

    @property
    def n(self) -> None:
        return None

    def problem(self) -> None:
        return None


def plain(endpoint: str, call: PlainCall, unknown: frozenset[str]) -> Spoken:
    """A request that is sent on under the engine's name of the model."""
    compact = msgspec.json.encode(call)
    fields = msgspec.json.decode(compact, type=Object)
    return Spoken(
        endpoint=endpoint,
        over=endpoint,
        parsed=Parsed(fields, compact, cast("AnyCall", call), frozenset()),
        native=partial(native_body, call),
        native_speaker=None,
        speaker=None,
        names={},
        stripped=unknown,
    )
