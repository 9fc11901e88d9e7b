"""Results as they are kept: one file per row, bound to the source that it was taken from."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Literal

import modelyard
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.selftest.outcome import Outcome
from modelyard.selftest.row import Row
from modelyard.state import StateDirectory, write_atomically

PACKAGE = Path(modelyard.__file__).parent
_FRAMEWORK = Path(__file__).parent

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


def source_sha256(row: Row) -> str:
    """Hex SHA-256 over the names and bytes of the row's own file, the framework and the sources that the row names."""
    own = Path(inspect.getfile(row.run))
    named = [PACKAGE / source for source in row.sources]
    if absent := [str(path.relative_to(PACKAGE)) for path in named if not path.exists()]:
        raise FileNotFoundError(f"row {row.key} names sources that are not there: {', '.join(absent)}")
    files = {own, *_FRAMEWORK.glob("*.py")}
    for path in named:
        files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.name
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
