"""Keys of clients, and teams above them. A secret is shown once and never stored: only its SHA-256 is."""

from __future__ import annotations

import msgspec

from modelyard.records.base import Record


class Scopes(Record):
    """What a key may reach; None means everything its parent may reach."""

    deployments: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None


class Limits(Record):
    """Upper bounds; None means the parent's bound, or none. `max_tokens` is the longest answer that one request may
    ask for."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    max_tokens: int | None = None


class Budgets(Record):
    """What may be spent in a day and in a month, both of UTC; None means the parent's bound, or none. Money is in
    millionths of a millionth of the prices' currency."""

    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    pico_per_day: int | None = None
    pico_per_month: int | None = None


EVERYTHING = Scopes()
UNLIMITED = Limits()
NO_BUDGET = Budgets()


class KeyRecord(Record):
    """`id` is the public part of the key and finds it in one look-up; `sha256` is over the whole key, in hex. After a
    rotation the secret before it, `former_sha256`, opens the same until `former_until` (Unix seconds).
    Where requests wait, those of a higher `priority` go first (None: the parent's, or 0); among equals each line has a
    share, by the `weight` of the node at its top.

    A record without a hash is a team: no secret opens it, keys and teams hang below it."""

    id: str
    sha256: str
    name: str
    created_at: float
    expires_at: float | None = None
    parent: str | None = None
    scopes: Scopes = EVERYTHING
    limits: Limits = UNLIMITED
    budgets: Budgets = NO_BUDGET
    former_sha256: str = ""
    former_until: float = 0.0
    priority: int | None = None
    weight: float = 1.0

    @property
    def is_team(self) -> bool:
        return not self.sha256

    @property
    def is_bounded(self) -> bool:
        return self.limits != UNLIMITED or self.budgets != NO_BUDGET

    @property
    def title(self) -> str:
        """How people are told of it."""
        return f"{'team' if self.is_team else 'key'} {self.name!r}"


class KeyCreated(Record, tag_field="schema", tag="key-created/v1"):
    """A line of the key log."""

    key: KeyRecord


class KeyRotated(Record, tag_field="schema", tag="key-rotated/v1"):
    """A line of the key log: from `at` (Unix seconds) the key `id` has another secret, and the one before it opens the
    same until `former_until`. A secret that was former already ends."""

    id: str
    at: float
    sha256: str
    former_until: float


class KeyChanged(Record, tag_field="schema", tag="key-changed/v1"):
    """A line of the key log: from `at` (Unix seconds) the key or team `id` has these bounds, all of them, in place of
    those that it had."""

    id: str
    at: float
    expires_at: float | None = None
    scopes: Scopes = EVERYTHING
    limits: Limits = UNLIMITED
    budgets: Budgets = NO_BUDGET
    priority: int | None = None
    weight: float = 1.0


class KeyRevoked(Record, tag_field="schema", tag="key-revoked/v1"):
    """A line of the key log: `id` and every key below it end at `at` (Unix seconds)."""

    id: str
    at: float


KeyEvent = KeyCreated | KeyRotated | KeyChanged | KeyRevoked


def changed(record: KeyRecord, event: KeyChanged) -> KeyRecord:
    """The record with its new bounds."""
    return msgspec.structs.replace(
        record,
        expires_at=event.expires_at,
        scopes=event.scopes,
        limits=event.limits,
        budgets=event.budgets,
        priority=event.priority,
        weight=event.weight,
    )
