"""The key log's only writer: keys and teams are added, given other secrets and other bounds, and revoked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from modelyard.clock import Clock
from modelyard.control.key_bounds import NO_BOUNDS, Bounds, bounds_of, check_within
from modelyard.errors import ModelyardError, UsageError
from modelyard.records.base import encode
from modelyard.records.keys import (
    Budgets,
    KeyChanged,
    KeyCreated,
    KeyEvent,
    KeyRecord,
    KeyRevoked,
    KeyRotated,
    Limits,
    Scopes,
    changed,
)
from modelyard.records.secrets import (
    ID_CHARACTERS,
    NewKey,
    hash_of,
    new_key,
    new_team,
    public_id,
    rotated,
    secret_for,
)
from modelyard.state import StateDirectory

_decoder = msgspec.json.Decoder[KeyEvent](KeyEvent)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key or a team as it is shown: never its secret or its hash. `parent` is an id, `line` the names of all above
    it, the nearest first. Until `former_until` the secret before the last rotation opens it too."""

    id: str
    name: str
    is_team: bool
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    former_until: float
    parent: str | None
    line: tuple[str, ...]
    scopes: Scopes
    limits: Limits
    budgets: Budgets
    priority: int | None = None
    weight: float = 1.0


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

    @property
    def keys(self) -> Mapping[str, KeyRecord]:
        """Every key and team that there ever was, by id."""
        return MappingProxyType(self._keys)

    def create(self, name: str, ttl_s: float | None, parent: str | None, bounds: Bounds = NO_BOUNDS) -> NewKey:
        """`parent` is an id, or the name of a team. Raises UsageError where it is not alive, or the child would do more
        than it may."""
        now = self._clock.wall()
        above = self._parent(parent, bounds, now)
        expires_at = None if ttl_s is None else now + ttl_s
        made = new_key(name, now, expires_at=expires_at, parent=above)
        key = NewKey(made.secret, bounds.on(made.record))
        self._append(KeyCreated(key=key.record))
        return key

    def create_team(self, name: str, parent: str | None, bounds: Bounds = NO_BOUNDS) -> KeyRecord:
        """Raises UsageError like `create`, and where a team that lives has the name already."""
        now = self._clock.wall()
        if self._team(name, now) is not None:
            raise UsageError(f"there is a team {name!r} already", hint="modelyard teams list")
        above = self._parent(parent, bounds, now)
        team = bounds.on(new_team(name, now, parent=above))
        self._append(KeyCreated(key=team))
        return team

    def rotate(self, key_id: str, overlap_s: float) -> str:
        """Another secret for a key, returned; the one that it has opens the same for `overlap_s` more. Raises
        UsageError."""
        key, now = self.known(key_id), self._clock.wall()
        if key.is_team or len(key.id) != ID_CHARACTERS:
            raise UsageError(f"{key.title} has no secret of ours", hint="modelyard keys list")
        if not all(self._is_live(one, now) for one in self._line(key)):
            raise UsageError(f"{key.title} has ended", hint="modelyard keys create")
        secret = secret_for(key.id)
        assert public_id(secret) == key.id
        self._append(KeyRotated(id=key.id, at=now, sha256=hash_of(secret), former_until=now + overlap_s))
        return secret

    def change(self, key_id: str, bounds: Bounds, expires_at: float | None) -> None:
        """Other bounds for a key or a team, all of them, and another end; where they are what it has, nothing happens.
        Raises UsageError where it has ended, or it or one below it would have more than its parent."""
        key, now = self.known(key_id), self._clock.wall()
        if not all(self._is_live(one, now) for one in self._line(key)):
            raise UsageError(f"{key.title} has ended", hint="modelyard keys create")
        if expires_at is not None and expires_at <= now and expires_at != key.expires_at:
            raise UsageError("a key cannot have ended already", hint=f"to end it now: modelyard keys revoke {key.id}")
        self._check(bounds, self._line(key)[1:])
        event = KeyChanged(
            id=key.id,
            at=now,
            expires_at=expires_at,
            scopes=bounds.scopes,
            limits=bounds.limits,
            budgets=bounds.budgets,
            priority=bounds.priority,
            weight=bounds.weight,
        )
        after = changed(key, event)
        if after == key:
            return
        self._check_below(after, now)
        self._append(event)

    def revoke(self, key_id: str) -> None:
        """Ends a key or a team and every key below it. Raises UsageError where there is none."""
        key = self.known(key_id)
        if key.id not in self._revoked:
            self._append(KeyRevoked(id=key.id, at=self._clock.wall()))

    def listed(self) -> list[ListedKey]:
        return [self._listed(key) for key in self._keys.values()]

    def shown(self, key_id: str) -> ListedKey:
        """Raises UsageError."""
        return self._listed(self.known(key_id))

    def _listed(self, key: KeyRecord) -> ListedKey:
        return ListedKey(
            id=key.id,
            name=key.name,
            is_team=key.is_team,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=self._revoked.get(key.id),
            former_until=key.former_until,
            parent=key.parent,
            line=tuple(one.name for one in self._line(key)[1:]),
            scopes=key.scopes,
            limits=key.limits,
            budgets=key.budgets,
            priority=key.priority,
            weight=key.weight,
        )

    def known(self, key_id: str) -> KeyRecord:
        """By id, or among the living a team by its name, or the only key of that name. Raises UsageError."""
        now = self._clock.wall()
        key = self._keys.get(key_id) or self._team(key_id, now)
        if key is not None:
            return key
        named = [one for one in self._keys.values() if one.name == key_id and self._is_live(one, now)]
        if len(named) > 1:
            ids = ", ".join(one.id for one in named[:4])
            raise UsageError(f"{len(named)} keys are named {key_id!r}", hint=f"say which by its id: {ids}")
        if not named:
            raise UsageError(f"there is no key {key_id!r}", hint="modelyard keys list")
        return named[0]

    def _team(self, name: str, now: float) -> KeyRecord | None:
        teams = [key for key in self._keys.values() if key.is_team and key.name == name and self._is_live(key, now)]
        return teams[0] if teams else None

    def _parent(self, parent: str | None, bounds: Bounds, now: float) -> str | None:
        """The parent's id."""
        if parent is None:
            return None
        above = self._keys.get(parent) or self._team(parent, now)
        if above is None or not all(self._is_live(key, now) for key in self._line(above)):
            raise UsageError(f"there is no live key {parent!r}", hint="modelyard keys list, or modelyard teams list")
        self._check(bounds, self._line(above))
        return above.id

    def _check(self, bounds: Bounds, above: list[KeyRecord]) -> None:
        if above and bounds.weight != NO_BOUNDS.weight:
            raise UsageError(
                f"what is below {above[-1].title} has a share of its seats, whatever weight it has itself",
                hint=f"modelyard keys change {above[-1].id} --weight {bounds.weight:g}",
            )
        for node in above:
            check_within(bounds, node)

    def _check_below(self, key: KeyRecord, now: float) -> None:
        """Raises UsageError where one below would have more than `key` as it shall be."""
        for child in self._keys.values():
            if child.id != key.id and self._is_live(child, now) and self._keys[key.id] in self._line(child):
                try:
                    check_within(bounds_of(child), key)
                except UsageError as error:
                    raise UsageError(
                        f"{child.title} would have more than its parent: {error.message.partition(': ')[2]}",
                        hint=f"change that first: modelyard keys change {child.id}",
                    ) from error

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
        elif isinstance(event, KeyRevoked):
            self._revoked[event.id] = event.at
        elif (known := self._keys.get(event.id)) is not None:
            self._keys[event.id] = rotated(known, event) if isinstance(event, KeyRotated) else changed(known, event)

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
