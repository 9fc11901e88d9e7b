"""What a running yard says about itself: where clients and the command line find it."""

from __future__ import annotations

from modelyard.records.base import Record


class Listening(Record, tag_field="schema", tag="listening/v1", kw_only=True):
    """`url` is what clients use as base URL; `admin` answers the command line only. `pid` is yard's."""

    pid: int
    url: str
    admin: str
    started_at: float
    version: str


class StartFailed(Record, tag_field="schema", tag="start-failed/v1", kw_only=True):
    """Why a yard could not start, for the command that started it."""

    message: str
    hint: str
    exit_code: int


StartOutcome = Listening | StartFailed
