"""Keys of clients as strings: made once, shown once, looked up by their public part, compared by their hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import msgspec

from modelyard.records.keys import NO_BUDGET, UNLIMITED, Budgets, KeyRecord, KeyRotated, Limits, Scopes

PREFIX = "my_"
ID_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class NewKey:
    """`secret` is for the owner's eyes, once; `record` is what is stored."""

    secret: str
    record: KeyRecord


def new_key(
    name: str,
    now: float,
    *,
    expires_at: float | None = None,
    parent: str | None = None,
    scopes: Scopes | None = None,
    limits: Limits | None = None,
    budgets: Budgets | None = None,
) -> NewKey:
    """A key of 256 random bits behind a public id of 48."""
    secret = secret_for(secrets.token_hex(ID_CHARACTERS // 2))
    record = key_record(secret, name, now, expires_at, parent, scopes, limits)
    return NewKey(secret, msgspec.structs.replace(record, budgets=budgets or NO_BUDGET))


def new_team(
    name: str,
    now: float,
    *,
    parent: str | None = None,
    scopes: Scopes | None = None,
    limits: Limits | None = None,
    budgets: Budgets | None = None,
) -> KeyRecord:
    """A node without a secret. Its id has another length than any key's, so that no secret looks it up."""
    return KeyRecord(
        id=f"team-{secrets.token_hex(ID_CHARACTERS // 2)}",
        sha256="",
        name=name,
        created_at=now,
        parent=parent,
        scopes=scopes or Scopes(),
        limits=limits or UNLIMITED,
        budgets=budgets or NO_BUDGET,
    )


def key_record(
    secret: str,
    name: str,
    now: float,
    expires_at: float | None = None,
    parent: str | None = None,
    scopes: Scopes | None = None,
    limits: Limits | None = None,
) -> KeyRecord:
    """The record of a secret that was chosen elsewhere."""
    return KeyRecord(
        id=public_id(secret),
        sha256=hash_of(secret),
        name=name,
        created_at=now,
        expires_at=expires_at,
        parent=parent,
        scopes=scopes or Scopes(),
        limits=limits or UNLIMITED,
    )


def secret_for(key_id: str) -> str:
    """Another secret of a key of ours."""
    return f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def public_id(secret: str) -> str:
    """What finds the record: the readable id of our own keys, a hash's beginning for any other string."""
    start = len(PREFIX)
    if secret.startswith(PREFIX) and secret[start + ID_CHARACTERS : start + ID_CHARACTERS + 1] == "_":
        return secret[start : start + ID_CHARACTERS]
    return "x" + hash_of(secret)[:16]


def matches(secret: str, record: KeyRecord, now: float) -> bool:
    """Whether `secret` opens `record` at `now`; compares in constant time."""
    found = hash_of(secret)
    former = hmac.compare_digest(found, record.former_sha256) and now < record.former_until
    return hmac.compare_digest(found, record.sha256) or former


def rotated(record: KeyRecord, event: KeyRotated) -> KeyRecord:
    """The record with its new secret."""
    return msgspec.structs.replace(
        record, sha256=event.sha256, former_sha256=record.sha256, former_until=event.former_until
    )
