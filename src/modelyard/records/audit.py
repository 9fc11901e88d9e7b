"""What was done to an installation and by whom: a line of the audit log."""

from __future__ import annotations

import msgspec

from modelyard.records.base import Record


class AuditEntry(Record, tag_field="schema", tag="audit/v1", kw_only=True):
    """`by` is who asked, as far as the admin API knows: `subject` what it was done to; `details` never hold a secret.
    `previous` is the hex SHA-256 of the line before this one, without its line end; empty in the first."""

    sequence: int
    at: float
    by: str
    action: str
    subject: str
    details: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    previous: str = ""
