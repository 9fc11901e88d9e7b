"""The records of the store: what it holds, under which names."""

from __future__ import annotations

import msgspec

from modelyard.records.base import Record


class StoredFile(Record):
    """`path` is relative to the artifact's folder in the store."""

    path: str
    sha256: str
    size_bytes: int


class StoredArtifact(Record, tag_field="schema", tag="stored-artifact/v2"):
    """What `name` (a name of the catalogue, or a pinned reference) means, file by file. `entry` is what engines are
    given: the one file of a `gguf`, the folder of a `huggingface` artifact. `sha256` is over all content, and equal for
    equal local files. `fetched_at` is Unix seconds, None where nothing was fetched; `source` and `notes` are for
    people. `place` is where weights lie that are used in place; empty where all bytes are the store's own."""

    name: str
    title: str
    format: str
    entry: str
    files: tuple[StoredFile, ...]
    sha256: str
    lineage: str
    licence: str
    source: str
    fetched_at: float | None = None
    place: str = ""
    recommended: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Pin(Record, tag_field="schema", tag="pin/v1"):
    """`reference`, as people type it, was found to mean the artifact called `name`."""

    reference: str
    name: str
