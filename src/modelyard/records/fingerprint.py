"""What evidence is bound to: change any part and the evidence no longer speaks for the deployment."""

from __future__ import annotations

import hashlib

import msgspec

from modelyard.records.base import Record


class Fingerprint(Record):
    """Hex SHA-256 of each part; `digest` is over the four in this order."""

    artifact: str
    engine: str
    configuration: str
    machine: str

    @property
    def digest(self) -> str:
        return sha256_of([self.artifact, self.engine, self.configuration, self.machine])


def sha256_of(value: object) -> str:
    """Hex SHA-256 of the canonical JSON (sorted keys) of plain values or records."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()
