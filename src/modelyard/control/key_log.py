"""The key log's only writer: keys are added and revoked, never changed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from modelyard.clock import Clock
from modelyard.errors import UsageError
from modelyard.records.base import encode
from modelyard.records.keys import KeyCreated, KeyEvent, KeyRecord, KeyRevoked, Scopes
from modelyard.records.secrets import NewKey, new_key
from modelyard.state import StateDirectory

_decoder = msgspec.json.Decoder[KeyEvent](KeyEvent)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as it is shown: never its secret or its hash."""

    id: str
    name: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    parent: str | None
    deployments: tuple[str, ...] | None
    endpoints: tuple[str, ...] | None


class KeyWriter:
    """One per state directory: control's."""

    def __init__(self, state: StateDirectory, clock: Clock) -> None:
        self._path = state.keys
        self._clock = clock
        self._keys: dict[str, KeyRecord] = {}
        self._revoked: dict[str, float] = {}
        self._mend()
        for event in self._events():
            self._apply(event)

    def create(self, name: str, ttl_s: float | None, parent: str | None, scopes: Scopes) -> NewKey:
        """Raises UsageError where the parent is not a live key, or the child would reach further than it."""
        now = self._clock.wall()
        if parent is not None:
            self._check_child(parent, scopes, now)
        key = new_key(name, now, expires_at=None if ttl_s is None else now + ttl_s, parent=parent, scopes=scopes)
        self._append(KeyCreated(key=key.record))
        return key

    def revoke(self, key_id: str) -> None:
        """Ends a key and every key below it. Raises UsageError where there is none."""
        if key_id not in self._keys:
            raise UsageError(f"there is no key {key_id!r}", hint="modelyard keys list")
        self._append(KeyRevoked(id=key_id, at=self._clock.wall()))

    def listed(self) -> list[ListedKey]:
        return [self._listed(key) for key in self._keys.values()]

    def _listed(self, key: KeyRecord) -> ListedKey:
        return ListedKey(
            key.id,
            key.name,
            key.created_at,
            key.expires_at,
            self._revoked.get(key.id),
            key.parent,
            key.scopes.deployments,
            key.scopes.endpoints,
        )

    def any_live(self) -> bool:
        """Whether somebody could call. Keys of passing use (with an end) do not count."""
        return any(key.expires_at is None and key.id not in self._revoked for key in self._keys.values())

    def _check_child(self, parent: str, scopes: Scopes, now: float) -> None:
        above = self._keys.get(parent)
        if above is None or parent in self._revoked or (above.expires_at is not None and above.expires_at <= now):
            raise UsageError(f"there is no live key {parent!r}", hint="modelyard keys list")
        for mine, theirs in (
            (scopes.deployments, above.scopes.deployments),
            (scopes.endpoints, above.scopes.endpoints),
        ):
            if theirs is not None and (mine is None or not set(mine) <= set(theirs)):
                raise UsageError("a key never reaches further than its parent", hint="name fewer deployments")

    def _apply(self, event: KeyEvent) -> None:
        if isinstance(event, KeyCreated):
            self._keys[event.key.id] = event.key
        else:
            self._revoked[event.id] = event.at

    def _append(self, event: KeyEvent) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            line = encode(event) + b"\n"
            if os.write(descriptor, line) != len(line):
                raise UsageError("the key log could not be written whole", hint="is the disk full?")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._apply(event)

    def _mend(self) -> None:
        """Cut off a last line that was never finished: it was never acknowledged either."""
        try:
            with open(self._path, "r+b") as file:
                data = file.read()
                file.truncate(data.rfind(b"\n") + 1)
        except FileNotFoundError:
            return

    def _events(self) -> list[KeyEvent]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [_decoder.decode(line) for line in lines if line]
