"""Keys of clients as strings: made once, shown once, looked up by their public part, compared by their hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from modelyard.records.keys import KeyRecord, Limits, Scopes

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
) -> NewKey:
    """A key of 256 random bits behind a public id of 48."""
    secret = f"{PREFIX}{secrets.token_hex(ID_CHARACTERS // 2)}_{secrets.token_urlsafe(32)}"
    return NewKey(secret, key_record(secret, name, now, expires_at, parent, scopes, limits))


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
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        name=name,
        created_at=now,
        expires_at=expires_at,
        parent=parent,
        scopes=scopes or Scopes(),
        limits=limits or Limits(),
    )


def public_id(secret: str) -> str:
    """What finds the record: the readable id of our own keys, a hash's beginning for any other string."""
    start = len(PREFIX)
    if secret.startswith(PREFIX) and secret[start + ID_CHARACTERS : start + ID_CHARACTERS + 1] == "_":
        return secret[start : start + ID_CHARACTERS]
    return "x" + hashlib.sha256(secret.encode()).hexdigest()[:16]


def matches(secret: str, record: KeyRecord) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), record.sha256)
