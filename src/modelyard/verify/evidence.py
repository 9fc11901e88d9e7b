"""Evidence on disk: one file per verification, read back as what is known of a deployment now."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from modelyard.records.base import UnreadableRecord, decode, encode
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint
from modelyard.state import StateDirectory, write_atomically
from modelyard.verify.report import Report

KEPT_REPORTS = 50


def save(state: StateDirectory, report: Report) -> Path:
    """Write the report. The newest KEPT_REPORTS of a deployment are kept, and older ones while they hold the newest
    evidence of some check. Reports are numbered, so that a clock that was set back cannot make an old verdict the
    newest; a deployment has one writer at a time."""
    folder = state.evidence / report.deployment
    folder.mkdir(mode=0o700, exist_ok=True)
    files = _newest_first(folder)
    path = folder / f"{_number(files[0]) + 1 if files else 1:08d}.json"
    write_atomically(path, encode(report))
    _prune([path, *files])
    return path


def latest(state: StateDirectory, deployment: str) -> tuple[Evidence, ...]:
    """The newest evidence of each check, newest report first.

    Reading stops at a report that is damaged or of another version: it may refute what stands in older ones."""
    newest: dict[str, Evidence] = {}
    for path in _newest_first(state.evidence / deployment):
        if (report := _read(path)) is None:
            break
        for evidence in report.evidence:
            newest.setdefault(evidence.check, evidence)
    return tuple(newest.values())


def still_proved(
    evidence: Iterable[Evidence], required_checks: Collection[str], fingerprint: Fingerprint, now: float
) -> bool:
    """Whether every required check has a green that speaks for `fingerprint` at `now` (Unix seconds). Nothing required
    is nothing proved."""
    proved = {one.check for one in evidence if one.valid_for(fingerprint, now)}
    return bool(required_checks) and proved.issuperset(required_checks)


def _prune(files: list[Path]) -> None:
    if len(files) <= KEPT_REPORTS:
        return
    superseded: list[Path] = []
    known: set[str] = set()
    readable = True
    for rank, path in enumerate(files):
        report = _read(path) if readable else None
        readable = report is not None
        checks = {evidence.check for evidence in report.evidence} if report else set[str]()
        if rank >= KEPT_REPORTS and checks <= known:
            superseded.append(path)
        known |= checks
    # Oldest first: what an unreadable report withdraws must not come back if this is cut short.
    for path in reversed(superseded):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Report | None:
    try:
        return decode(path.read_bytes(), Report)
    except (UnreadableRecord, FileNotFoundError):
        return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.json") if path.stem.isdigit()), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.stem)
