"""Artifacts that were made here out of others: folders of the store, each with what it was made from and how.

    derived/KEY/NAME/         the model's files, read-only
    derived/KEY/artifact.json (DerivedArtifact), written last: a folder without it does not count and is made again

KEY hashes the parent's content and the recipe: the same thing is made once, whatever it is called."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from modelyard.errors import FetchFailed, ModelRefused, ModelyardError
from modelyard.models.gate import check_folder
from modelyard.models.hashing import Progress, no_progress, sha256_of_file
from modelyard.models.store import Store, StoreWriter
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.records.fingerprint import sha256_of
from modelyard.records.plan import Artifact
from modelyard.state import write_atomically


class DerivedArtifact(Record, tag_field="schema", tag="derived-artifact/v1"):
    """One folder that was made here. `sha256` is over names, sizes and contents of its files, `made_at` Unix seconds,
    `parent_sha256` the content that it was made from."""

    name: str
    format: str
    sha256: str
    size_bytes: int
    lineage: str
    parent_sha256: str
    recipe: str
    made_at: float


class Derived:
    """Reading needs no lock; `keep` is for the holder of the store's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.root = store.root / "derived"

    def find(self, wanted: Artifact, parent: Artifact, recipe: str) -> Artifact | None:
        """`wanted` as it lies here, if it was made whole and is unchanged since; None otherwise."""
        folder = self._folder(parent, recipe)
        try:
            record = decode((folder / "artifact.json").read_bytes(), DerivedArtifact)
            if self._hash(folder / record.name) != record.sha256:
                return None
        except (OSError, UnreadableRecord, ModelRefused):
            return None
        return self._artifact(record, folder, wanted)

    def keep(
        self,
        writer: StoreWriter,
        made: Path,
        wanted: Artifact,
        parent: Artifact,
        recipe: str,
        on_progress: Progress = no_progress,
    ) -> Artifact:
        """Move the finished folder `made` (of `writer`'s partial folder) here, and make it count.

        Raises ModelRefused where the gate finds something else than data in it, ModelyardError where the disk says
        no."""
        files = check_folder(made)
        folder = self._folder(parent, recipe)
        try:
            for path in files:
                os.chmod(path, 0o400)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            os.replace(made, folder / wanted.name)
            record = DerivedArtifact(
                name=wanted.name,
                format=wanted.format,
                sha256=self._hash(folder / wanted.name, on_progress),
                size_bytes=sum(path.stat().st_size for path in check_folder(folder / wanted.name)),
                lineage=wanted.lineage,
                parent_sha256=parent.sha256,
                recipe=recipe,
                made_at=self._store.clock.wall(),
            )
            write_atomically(folder / "artifact.json", encode(record))
        except OSError as error:
            raise ModelyardError(
                f"the model store {self.root} cannot be written: {error.strerror}",
                hint="look at its owner, permissions and space, or name another folder in MODELYARD_STATE",
            ) from error
        return self._artifact(record, folder, wanted)

    def made(self) -> list[tuple[str, DerivedArtifact]]:
        """Every artifact that was made here, under the key that stands in its folder's name; the bytes are not looked
        at."""
        found: list[tuple[str, DerivedArtifact]] = []
        for path in sorted(self.root.glob("*/artifact.json")):
            try:
                found.append((path.parent.name, decode(path.read_bytes(), DerivedArtifact)))
            except (OSError, UnreadableRecord):
                continue
        return found

    def path_of(self, key: str, artifact: DerivedArtifact) -> Path:
        """What engines are given."""
        return self.root / key / artifact.name

    def verify(self, key: str, artifact: DerivedArtifact, on_progress: Progress = no_progress) -> None:
        """Hash every file again, whatever is remembered. Raises FetchFailed where they are not what was made."""
        folder = self.path_of(key, artifact)
        try:
            files = check_folder(folder)
            content = [
                [str(path.relative_to(folder)), path.stat().st_size, sha256_of_file(path, on_progress)]
                for path in files
            ]
        except (OSError, ModelRefused) as error:
            raise FetchFailed(f"{folder} cannot be read: {error}", hint=f"modelyard models remove {key}") from error
        if (found := sha256_of(content)) != artifact.sha256:
            raise FetchFailed(
                f"{folder} has SHA-256 {found}, not {artifact.sha256}",
                hint=f"the disk is failing or someone changed it: modelyard models remove {key}; it is made again then",
            )

    def remove(self, key: str) -> int:
        """Remove what was made, its record first; for the holder of the store's lock. The bytes that came free."""
        folder = self.root / key
        freed = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
        (folder / "artifact.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _folder(self, parent: Artifact, recipe: str) -> Path:
        return self.root / sha256_of([parent.sha256, recipe])[:16]

    def _hash(self, folder: Path, on_progress: Progress = no_progress) -> str:
        return self._store.hashes.of_folder(folder, check_folder(folder), on_progress)

    def _artifact(self, record: DerivedArtifact, folder: Path, wanted: Artifact) -> Artifact:
        return Artifact(
            name=record.name,
            format=record.format,
            path=str(folder / record.name),
            sha256=record.sha256,
            size_bytes=record.size_bytes,
            lineage=record.lineage,
            recommended=wanted.recommended,
        )
