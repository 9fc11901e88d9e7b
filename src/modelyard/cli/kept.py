"""What the store keeps, fetched or made here, as the verbs of `modelyard models` handle it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from modelyard.control import wanted as desired
from modelyard.errors import UsageError
from modelyard.models.derived import Derived, DerivedArtifact
from modelyard.models.hashing import Progress
from modelyard.models.store import Store, StoreWriter
from modelyard.models.stored import StoredArtifact
from modelyard.records.base import UnreadableRecord
from modelyard.state import StateDirectory


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that the store keeps, whether it was fetched or made here. `path` is what engines are given."""

    name: str
    path: str
    size_bytes: int
    verify: Callable[[Progress], None]
    remove: Callable[[StoreWriter], int]

    @classmethod
    def stored(cls, store: Store, one: StoredArtifact) -> Kept:
        def remove(writer: StoreWriter) -> int:
            writer.remove(one.name)
            return 0

        return cls(one.name, str(store.path_of(one)), one.size_bytes, partial(store.verify, one), remove)

    @classmethod
    def all_made(cls, store: Store) -> list[Kept]:
        derived = Derived(store)

        def of(key: str, one: DerivedArtifact) -> Kept:
            path = str(derived.path_of(key, one))
            return cls(key, path, one.size_bytes, partial(derived.verify, key, one), lambda _: derived.remove(key))

        return [of(key, one) for key, one in derived.made()]

    @classmethod
    def called(cls, store: Store, name: str) -> Kept:
        """By its name, by a reference that is pinned to it, or by the title that plans show."""
        pinned = next((pin.name for pin in store.pins() if pin.reference == name), "")
        titled = (one for one in store.stored() if one.title == name)
        found = store.record(name) or store.record(pinned) or next(titled, None)
        if found is not None:
            return cls.stored(store, found)
        for one in cls.all_made(store):
            if one.name == name:
                return one
        raise UsageError(f"{name!r} is not in the store", hint="modelyard models list shows what is")


def users_of(state: StateDirectory, path: str) -> list[str]:
    """Deployments that would not start again without it."""
    users: list[str] = []
    for name in desired.names(state):
        try:
            wanted = desired.load(state, name)
        except UnreadableRecord:
            continue
        if wanted is not None and any(replica.artifact.path == path for replica in wanted.plan.replicas):
            users.append(name)
    return users
