"""What a key's line comes to at the door and in a request. A pure function."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from modelyard.records.keys import KeyRecord


class Terms(Struct, frozen=True):
    """`share` names the one that seats are shared out to: the node at the top of the line, so that a team has one
    share however many keys it has, by its `weight`. `max_tokens` is the longest answer that may be asked for."""

    share: str
    weight: float = 1.0
    priority: int = 0
    max_tokens: int | None = None


def terms_of(line: Sequence[KeyRecord]) -> Terms:
    """Of a key and those above it. Whatever several of them state, the least holds."""
    top = line[-1]
    priorities = [one.priority for one in line if one.priority is not None]
    most = [one.limits.max_tokens for one in line if one.limits.max_tokens is not None]
    return Terms(top.id, top.weight, min(priorities, default=0), min(most, default=None))
