"""The key log's only writer: keys are added and revoked, never changed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import msgspec

from modelyard.clock import Clock
from modelyard.errors import ModelyardError, UsageError
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
        if key_id not in self._revoked:
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

    def _check_child(self, parent: str, scopes: Scopes, now: float) -> None:
        above = self._keys.get(parent)
        if above is None or not all(self._is_live(key, now) for key in self._line(above)):
            raise UsageError(f"there is no live key {parent!r}", hint="modelyard keys list")
        for mine, theirs in (
            (scopes.deployments, above.scopes.deployments),
            (scopes.endpoints, above.scopes.endpoints),
        ):
            if theirs is not None and (mine is None or not set(mine) <= set(theirs)):
                raise UsageError("a key never reaches further than its parent", hint="name fewer deployments")

    def _line(self, key: KeyRecord) -> list[KeyRecord]:
        """The key and those above it. A parent is written before its child, so that the line has an end."""
        line = [key]
        while (parent := line[-1].parent) is not None:
            line.append(self._keys[parent])
        return line

    def _is_live(self, key: KeyRecord, now: float) -> bool:
        return key.id not in self._revoked and (key.expires_at is None or now < key.expires_at)

    def _apply(self, event: KeyEvent) -> None:
        if isinstance(event, KeyCreated):
            self._keys[event.key.id] = event.key
        else:
            self._revoked[event.id] = event.at

    def _append(self, event: KeyEvent) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            line = encode(event) + b"\n"
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, line) != len(line):
                # The next line must not begin in the middle of this one.
                os.ftruncate(descriptor, before)
                raise ModelyardError("the key log could not be written whole", hint="is the disk full?")
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
        """What can be read; a line of another version is left where it is, as the gateway leaves it."""
        events: list[KeyEvent] = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_bytes().split(b"\n")[:-1]:
                try:
                    events.append(_decoder.decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    print(f"error: {self._path}: {error}", flush=True)
        return events
