"""What a conformance run found, kept so that `engines list` can say what was proved here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modelyard.engines.contract import Installed
from modelyard.hardware.machine import Machine
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.state import StateDirectory, write_atomically

Verdict = Literal["green", "red", "not claimed", "not asked"]


class Outcome(Record):
    """One row: `predicted` is what a sound engine shows, `measured` what this one showed, or why it was not asked.

    `not claimed`: the engine does not promise it. `not asked`: an earlier row ended what this one needs, or nothing
    here could refute it. Neither is ever counted as green. `advice` is what to try where it is red."""

    row: str
    claim: str
    bound: str
    predicted: str
    measured: str
    verdict: Verdict
    duration_s: float
    advice: str = ""


class Conformance(Record, tag_field="schema", tag="conformance/v1"):
    """One run of the kit. `at` is Unix seconds; `effective` is the configuration that ran; `tail` has for each red row
    the last log lines of its launch, under a line that names both."""

    engine: str
    version: str
    lock_sha256: str
    modelyard: str
    model: str
    artifact_sha256: str
    machine: Machine
    at: float
    duration_s: float
    rows: tuple[Outcome, ...]
    effective: dict[str, str | int | float | bool]
    tail: tuple[str, ...] = ()

    @property
    def red(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.rows if outcome.verdict == "red")

    @property
    def green(self) -> bool:
        """Something was proved and nothing refuted. A row that could not be asked because the engine had ended leaves
        a red one before it."""
        return not self.red and any(outcome.verdict == "green" for outcome in self.rows)

    def count(self, verdict: Verdict) -> int:
        return sum(outcome.verdict == verdict for outcome in self.rows)

    def speaks_for(self, install: Installed, machine: Machine) -> bool:
        """Whether it was taken from this installation on this machine."""
        same_engine = (self.engine, self.version, self.lock_sha256) == (
            install.engine,
            install.version,
            install.lock_sha256,
        )
        return same_engine and self.machine.fingerprint() == machine.fingerprint()


def save(state: StateDirectory, result: Conformance) -> None:
    """Keep `result` as the last one of its engine, green or red."""
    path = _path_of(state, result.engine)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, encode(result))


def latest(state: StateDirectory, engine: str) -> Conformance | None:
    """The last result of `engine`; None where there is none that this version can read."""
    try:
        return decode(_path_of(state, engine).read_bytes(), Conformance)
    except (FileNotFoundError, UnreadableRecord):
        return None


def _path_of(state: StateDirectory, engine: str) -> Path:
    return state.conformance / f"{engine}.json"
