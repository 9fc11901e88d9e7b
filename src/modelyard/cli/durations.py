"""Lengths of time as people type them."""

from __future__ import annotations

import re

from modelyard.errors import UsageError

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h`, `7d`. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a length of time", hint="90s, 10m, 1h or 7d")
    return float(match[1]) * _UNITS_S[match[2] or "s"]
