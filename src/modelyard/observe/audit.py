"""Reading the audit log: its entries, and whether each is still the one that was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modelyard.records.audit import AuditEntry
from modelyard.records.base import Record, UnreadableRecord, decode


class Chain(Record, kw_only=True):
    """`broken_at` is the number of the first line that is not what was written, from 1; None where all are.
    `last_sha256` is what the next entry will bear."""

    entries: int
    last_sha256: str
    broken_at: int | None = None
    reason: str = ""


def entries(path: Path) -> tuple[AuditEntry, ...]:
    """Every entry that can be read, in order."""
    found: list[AuditEntry] = []
    for line in audit_lines(path):
        try:
            found.append(decode(line, AuditEntry))
        except UnreadableRecord:
            continue
    return tuple(found)


def verify_chain(path: Path) -> Chain:
    """Follow the chain from its beginning to the first break."""
    count, last = 0, ""
    for number, line in enumerate(audit_lines(path), 1):
        reason = _wrong(line, number, last)
        if reason:
            return Chain(entries=count, last_sha256=last, broken_at=number, reason=reason)
        count, last = number, line_sha256(line)
    return Chain(entries=count, last_sha256=last)


def audit_lines(path: Path) -> list[bytes]:
    """Whole lines, without their ends."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def line_sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _wrong(line: bytes, number: int, last: str) -> str:
    try:
        entry = decode(line, AuditEntry)
    except UnreadableRecord as error:
        return error.message
    if entry.previous != last:
        return "it does not bear the hash of the line before it"
    return "" if entry.sequence == number else f"it says that it is number {entry.sequence}"
