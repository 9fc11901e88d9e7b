"""Results as they are kept: one file per row, bound to the source that it was taken from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.selftest.outcome import Outcome
from modelyard.state import StateDirectory, write_atomically

Verdict = Literal["green", "red", "not run"]


class Result(Record, tag_field="schema", tag="selftest/v1"):
    """One run of one row. `size` is how often it had to be tried; `reason` says why it was not run; `at` is Unix
    seconds; `source_sha256` is over the code that the row depends on."""

    row: str
    name: str
    claim: str
    unit: str
    size: int
    short: bool
    verdict: Verdict
    outcome: Outcome
    source_sha256: str
    seed: int
    machine: str
    modelyard: str
    at: float
    duration_s: float
    command: str
    reason: str = ""


def save(state: StateDirectory, result: Result) -> None:
    """Keep it as the last one of its row and form."""
    path = _path_of(state, result.row, short=result.short)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, encode(result))


def latest(state: StateDirectory, key: str, *, short: bool) -> Result | None:
    """None where there is none that this version can read."""
    try:
        return decode(_path_of(state, key, short=short).read_bytes(), Result)
    except (FileNotFoundError, UnreadableRecord):
        return None


def _path_of(state: StateDirectory, key: str, *, short: bool) -> Path:
    return state.selftest / f"{key}{'.short' if short else ''}.json"
