"""The one way by which fetched or foreign files become an artifact: links, the gate, and only then the name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from modelyard.errors import ModelRefused
from modelyard.models.gate import check_folder
from modelyard.models.hashing import Progress, no_progress
from modelyard.models.reader import read_card
from modelyard.models.store import Store, StoreWriter
from modelyard.models.stored import StoredArtifact


def publish_checked(
    store: Store,
    writer: StoreWriter,
    artifact: StoredArtifact,
    places: Mapping[str, Path] | None = None,
    on_progress: Progress = no_progress,
) -> StoredArtifact:
    """The artifact under its name, with the hash of its whole content where it is a folder.

    Raises ModelRefused, said of where it came from and not of our copy, and then nothing of it stays."""
    path = writer.link(artifact, places)
    try:
        read_card(path)
        if artifact.format == "huggingface":
            sha256 = store.hashes.of_folder(path, check_folder(path), on_progress)
            artifact = msgspec.structs.replace(artifact, sha256=sha256)
    except ModelRefused as error:
        raise refused(writer, artifact, path, error) from error
    writer.name(artifact)
    return artifact


def refused(writer: StoreWriter, artifact: StoredArtifact, path: Path, error: ModelRefused) -> ModelRefused:
    """Removes what was linked at `path`; the error in words of `artifact`'s own name."""
    writer.discard(artifact)
    message = error.message.replace(f"{path}/", f"{artifact.name}: ").replace(str(path), artifact.name)
    return ModelRefused(message, hint=error.hint)
