"""Who may call: the keys of the key log, followed as it grows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.gateway.refusals import Refusal, unknown_model
from modelyard.gateway.terms import Terms, terms_of
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.keys import (
    NO_BUDGET,
    KeyChanged,
    KeyCreated,
    KeyEvent,
    KeyRecord,
    KeyRevoked,
    KeyRotated,
    changed,
)
from modelyard.records.secrets import matches, public_id, rotated

ANONYMOUS = KeyRecord(id="", sha256="", name="anonymous", created_at=0.0)
_DEAD = KeyRecord(id="", sha256="0" * 64, name="", created_at=0.0, expires_at=0.0)


@dataclass(slots=True)
class Keyring:
    """Keys by public id. Whoever holds a key may do what it and every key above it may. `fresh_budgets` are the nodes
    that were changed to have a budget and had none, until somebody has counted what they used before."""

    keys: dict[str, KeyRecord] = field(default_factory=dict[str, KeyRecord])
    revoked: set[str] = field(default_factory=set[str])
    fresh_budgets: set[str] = field(default_factory=set[str])
    version: int = 0
    _reaches: dict[tuple[str, str, str], bool] = field(default_factory=dict[tuple[str, str, str], bool])
    _terms: dict[str, Terms] = field(default_factory=dict[str, Terms])

    def apply(self, event: KeyEvent) -> None:
        self._changed()
        if isinstance(event, KeyCreated):
            self.keys[event.key.id] = event.key
        elif isinstance(event, KeyRevoked):
            self.revoked.add(event.id)
        elif (known := self.keys.get(event.id)) is not None:
            self.keys[event.id] = self._changed_key(known, event)

    def _changed_key(self, key: KeyRecord, event: KeyRotated | KeyChanged) -> KeyRecord:
        if isinstance(event, KeyRotated):
            return rotated(key, event)
        if key.budgets == NO_BUDGET != event.budgets:
            self.fresh_budgets.add(key.id)
        return changed(key, event)

    def clear(self) -> None:
        self._changed()
        self.keys.clear()
        self.revoked.clear()

    def _changed(self) -> None:
        self.version += 1
        self._reaches.clear()
        self._terms.clear()

    def authenticate(self, secret: str, now: float) -> KeyRecord:
        """The record of a live key. Raises Refusal (401) without saying which part was wrong."""
        record = self.keys.get(public_id(secret), _DEAD)
        # Always compared, so that the time of a refusal does not tell which keys exist.
        if not matches(secret, record, now) or not all(self._live(one, now) for one in self.line(record)):
            raise Refusal(401, "the key is not valid here", code="invalid_api_key")
        return record

    def expires_at(self, key: KeyRecord, now: float) -> float:
        """Until when what is known of the key holds by itself: Unix seconds, infinity if for ever. The key or one above
        it ends then, or a secret that it had before."""
        ends = [one.expires_at for one in self.line(key) if one.expires_at is not None]
        if now < key.former_until:
            ends.append(key.former_until)
        return min(ends, default=float("inf"))

    def authorize(self, key: KeyRecord, deployment: str, endpoint: str) -> None:
        """Raises Refusal where the key, or one above it, does not reach that far: 404, as for a name that nobody has,
        where the deployment is none of its own; 403 where only this endpoint is not."""
        if self.reaches(key, deployment, endpoint):
            return
        line = self.line(key)
        if any(one.scopes.deployments is not None and deployment not in one.scopes.deployments for one in line):
            raise unknown_model(deployment)
        raise Refusal(403, f"this key may not use {endpoint} of {deployment!r}", code="key_scope")

    def reaches(self, key: KeyRecord, deployment: str, endpoint: str) -> bool:
        """Ask only for deployments that exist: answers are remembered until a key changes."""
        asked = (key.id, deployment, endpoint)
        known = self._reaches.get(asked)
        if known is None:
            known = self._reaches[asked] = all(
                (one.scopes.deployments is None or deployment in one.scopes.deployments)
                and (one.scopes.endpoints is None or endpoint in one.scopes.endpoints)
                for one in self.line(key)
            )
        return known

    def terms(self, key: KeyRecord) -> Terms:
        """What the key's line comes to; remembered until a key changes."""
        known = self._terms.get(key.id)
        if known is None:
            known = self._terms[key.id] = terms_of(self.line(key))
        return known

    def _live(self, key: KeyRecord, now: float) -> bool:
        return key.id not in self.revoked and (key.expires_at is None or now < key.expires_at)

    def line(self, key: KeyRecord) -> list[KeyRecord]:
        """The key and those above it; a parent that does not exist leaves nothing."""
        line = [key]
        while (parent := line[-1].parent) is not None:
            above = self.keys.get(parent)
            if above is None or above in line:
                return [_DEAD]
            line.append(above)
        return line


@dataclass(slots=True)
class KeyLog:
    """Follows the key log from where it was last read; a torn last line waits for its end."""

    path: Path
    offset: int = 0
    identity: tuple[int, int] | None = None

    def follow(self, keyring: Keyring) -> bool:
        """Applies what is new; True where there was something. A replaced log is read from its beginning."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if self.identity != (status.st_dev, status.st_ino) or status.st_size < self.offset:
                    self.identity, self.offset = (status.st_dev, status.st_ino), 0
                    keyring.clear()
                if status.st_size == self.offset:
                    return False
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.split(b"\n")[:-1]:
            try:
                keyring.apply(decode(line, KeyEvent))  # type: ignore[arg-type]
            except UnreadableRecord as error:
                print(f"error: {self.path}: {error}", flush=True)
        self.offset += len(whole)
        return bool(whole)
