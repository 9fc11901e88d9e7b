"""What a verification found, and how it is told to the operator."""

from __future__ import annotations

from modelyard.records.base import Record
from modelyard.records.evidence import Evidence


class Skipped(Record):
    """A check that was not asked, and why: neither green nor red."""

    check: str
    reason: str


class Report(Record, tag_field="schema", tag="report/v1"):
    """One verification. `advice` says for each red check what to try."""

    deployment: str
    evidence: tuple[Evidence, ...]
    advice: dict[str, str]
    duration_s: float
    skipped: tuple[Skipped, ...] = ()

    @property
    def red(self) -> tuple[Evidence, ...]:
        return tuple(evidence for evidence in self.evidence if evidence.verdict == "red")

    @property
    def green(self) -> bool:
        """Something was asked and nothing was refuted. A check that could not be asked because the replica had stopped
        answering leaves a red one behind, so a silent replica is never green."""
        return bool(self.evidence) and not self.red


def explain(report: Report) -> list[str]:
    """For every red check three lines: what was claimed, why it is refuted, what to try; nothing for a green report."""
    lines: list[str] = []
    for red in report.red:
        lines.append(f"{red.check}: not proved that {red.claim}")
        lines.append(f"  measured {red.measured}; green needs {red.bound}")
        lines.append(f"  try: {report.advice.get(red.check) or red.command}")
    return lines
