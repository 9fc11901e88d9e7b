"""Keys of clients. The secret is shown once and never stored: only its SHA-256 is."""

from __future__ import annotations

from modelyard.records.base import Record


class Scopes(Record):
    """What a key may reach; None means everything its parent may reach."""

    deployments: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None


class Limits(Record):
    """Upper bounds; None means the parent's bound, or none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


class KeyRecord(Record):
    """`id` is the public part of the key and finds it in one look-up; `sha256` is over the whole key, in hex.
    Where requests wait, those of a higher `priority` go first; among equals a key has a share by its `weight`."""

    id: str
    sha256: str
    name: str
    created_at: float
    expires_at: float | None = None
    parent: str | None = None
    scopes: Scopes = Scopes()
    limits: Limits = Limits()
    priority: int = 0
    weight: float = 1.0


class KeyCreated(Record, tag_field="schema", tag="key-created/v1"):
    """A line of the key log."""

    key: KeyRecord


class KeyRevoked(Record, tag_field="schema", tag="key-revoked/v1"):
    """A line of the key log: `id` and every key below it end at `at` (Unix seconds)."""

    id: str
    at: float


KeyEvent = KeyCreated | KeyRevoked
