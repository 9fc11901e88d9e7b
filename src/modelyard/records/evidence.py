"""A claim about a deployment, and the record that proves or refutes it."""

from __future__ import annotations

from typing import Literal

from modelyard.records.base import Record
from modelyard.records.fingerprint import Fingerprint

Verdict = Literal["green", "red"]


class Evidence(Record, tag_field="schema", tag="evidence/v1"):
    """One check's outcome. `bound` says in words what green needs; `predicted` and `measured` are what was expected
    and what was seen, in the same words or number; `command` repeats the check; times are Unix seconds."""

    deployment: str
    check: str
    claim: str
    bound: str
    predicted: str
    measured: str
    verdict: Verdict
    command: str
    at: float
    expires_at: float
    duration_s: float
    fingerprint: Fingerprint

    def valid_for(self, fingerprint: Fingerprint, now: float) -> bool:
        """Whether this green still speaks for a deployment with `fingerprint` at `now`."""
        return self.verdict == "green" and now < self.expires_at and self.fingerprint == fingerprint
