"""Something about this machine or its set-up that somebody should know, and what to do about it."""

from __future__ import annotations

from typing import Literal

from modelyard.records.base import Record

# `error`: nothing can be served until it is mended. `warning`: serving works and something is worse than it need be.
# `note`: worth knowing, nothing to do.
Severity = Literal["error", "warning", "note"]


class Finding(Record):
    """`what` is seen, `why` it matters, `remedy` is what to type or to change; empty where there is nothing to do."""

    severity: Severity
    check: str
    what: str
    why: str
    remedy: str = ""
