"""The audit log's only writer: who did what, appended, each entry bearing the hash of the one before it."""

from __future__ import annotations

import os

from modelyard.clock import Clock
from modelyard.errors import ModelyardError
from modelyard.observe.audit import audit_lines, line_sha256
from modelyard.records.audit import AuditEntry
from modelyard.records.base import encode
from modelyard.state import StateDirectory


class AuditLog:
    """One per state directory: control's. A line that was never finished, because its writer died, is cut off: what it
    told of had not been answered either."""

    def __init__(self, state: StateDirectory, clock: Clock) -> None:
        self._path, self._clock = state.audit, clock
        self._mend()
        lines = audit_lines(self._path)
        self._sequence = len(lines)
        self._last = line_sha256(lines[-1]) if lines else ""

    def note(self, by: str, action: str, subject: str, **details: str) -> None:
        """In the file, and on the disk, when this returns. Raises ModelyardError."""
        entry = AuditEntry(
            sequence=self._sequence + 1,
            at=self._clock.wall(),
            by=by,
            action=action,
            subject=subject,
            details=details,
            previous=self._last,
        )
        line = encode(entry)
        try:
            self._append(line + b"\n")
        except OSError as error:
            raise ModelyardError(
                f"the audit log could not be written: {error.strerror}", hint="is the disk full?"
            ) from error
        self._sequence += 1
        self._last = line_sha256(line)

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, before)
                raise OSError(28, "less than a line was written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _mend(self) -> None:
        try:
            with self._path.open("r+b") as file:
                data = file.read()
                file.truncate(data.rfind(b"\n") + 1)
        except FileNotFoundError:
            return
