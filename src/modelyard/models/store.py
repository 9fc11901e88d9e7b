"""The content-addressed store of fetched model files.

    blobs/sha256/AA/HASH      the bytes, read-only, only ever renamed into place after their hash was checked
    artifacts/NAME/           artifact.json (StoredArtifact) and a link to the blob under the model's own file name,
                              because engines read the format off the suffix
    partial/                  what is being fetched; whatever lies there when the store is opened for writing is left
                              over from a process that died, and is removed
    hashes/                   remembered hashes of files (models.hashing)

Writers hold the lock; readers need none, since every visible file is complete."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from modelyard.clock import SYSTEM, Clock
from modelyard.errors import FetchFailed, ModelyardError
from modelyard.models.hashing import FileHashes, Progress, no_progress, sha256_of_file
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.state import StateDirectory, locked, write_atomically

# Left free for logs, journals and whoever else shares the disk.
RESERVE_BYTES = 64 << 20


class StoredArtifact(Record, tag_field="schema", tag="stored-artifact/v1"):
    """One fetched file. `fetched_at` is Unix seconds; `source` says where it came from, for people."""

    name: str
    file_name: str
    sha256: str
    size_bytes: int
    format: str
    lineage: str
    licence: str
    source: str
    fetched_at: float


class Store:
    """Reading needs no more than this; writing goes through `writing()`."""

    def __init__(self, state: StateDirectory, clock: Clock = SYSTEM) -> None:
        self.root = state.store
        self.clock = clock
        self.hashes = FileHashes(self.root / "hashes")

    def find(self, name: str) -> StoredArtifact | None:
        """The artifact stored under `name` if its record and its bytes are there, unchanged since they were checked."""
        if (artifact := self._record(name)) is None:
            return None
        try:
            size = self.path_of(artifact).stat().st_size
        except FileNotFoundError:
            return None
        if size != artifact.size_bytes or self.hashes.of_file(self.path_of(artifact)) != artifact.sha256:
            return None
        return artifact

    def stored(self) -> list[StoredArtifact]:
        """Everything that has a readable record, by name; the bytes are not looked at."""
        records = sorted((self.root / "artifacts").glob("*/artifact.json"))
        return [artifact for record in records if (artifact := self._record(record.parent.name))]

    def _record(self, name: str) -> StoredArtifact | None:
        try:
            return decode((self._folder(name) / "artifact.json").read_bytes(), StoredArtifact)
        except (FileNotFoundError, NotADirectoryError, UnreadableRecord):
            return None

    def path_of(self, artifact: StoredArtifact) -> Path:
        """Where engines find the file, under its own name."""
        return self._folder(artifact.name) / artifact.file_name

    def verify(self, artifact: StoredArtifact, on_progress: Progress = no_progress) -> None:
        """Hash the bytes again, whatever is remembered. Raises FetchFailed where they are not what was stored."""
        try:
            found = sha256_of_file(self.path_of(artifact), on_progress)
        except OSError as error:
            raise FetchFailed(
                f"the stored model {artifact.name} cannot be read: {error.strerror}",
                hint=f"remove {self._folder(artifact.name)} and fetch it again",
            ) from error
        if found != artifact.sha256:
            raise FetchFailed(
                f"the stored model {artifact.name} has SHA-256 {found}, not {artifact.sha256}",
                hint=f"the disk is failing or someone changed it: remove {self._folder(artifact.name)} and fetch again",
            )

    @contextmanager
    def writing(self) -> Generator[StoreWriter]:
        """Hold the store's lock. Raises StateLocked at once where another process is writing."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.root / "lock", holding="fetching a model"):
            writer = StoreWriter(self)
            writer.clear_partial()
            try:
                yield writer
            finally:
                writer.clear_partial()

    def blob_path(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def _folder(self, name: str) -> Path:
        return self.root / "artifacts" / name


class StoreWriter:
    """What the holder of the lock may do."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._partial = store.root / "partial"

    def clear_partial(self) -> None:
        """Remove what a dead fetch left. Its child may still be writing there for a moment: then a later start does."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def partial_folder(self) -> Path:
        """A new empty folder on the store's own disk, removed when writing ends."""
        folder = self._partial / secrets.token_hex(8)
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def require_space(self, needed_bytes: int) -> None:
        """Raises ModelyardError with both numbers where the disk cannot take `needed_bytes` more."""
        available = shutil.disk_usage(self._store.root).free
        if available < needed_bytes + RESERVE_BYTES:
            raise disk_full(self._store.root, needed_bytes + RESERVE_BYTES, available)

    def put(self, chunks: Iterable[bytes], artifact: StoredArtifact) -> Path:
        """Store bytes as they arrive; they must turn out to be what `artifact` says. Returns the file's path."""
        path = self.partial_folder() / "blob"
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise self._translated(error, artifact.size_bytes - size) from error
        return self._keep(path, digest.hexdigest(), size, artifact)

    def adopt(self, path: Path, artifact: StoredArtifact, on_progress: Progress = no_progress) -> Path:
        """Move a finished file of `partial_folder` into the store if it is what `artifact` says."""
        return self._keep(path, sha256_of_file(path, on_progress), path.stat().st_size, artifact)

    def rescue(self, artifact: StoredArtifact, on_progress: Progress = no_progress) -> Path | None:
        """Publish bytes that an earlier process stored and died before naming; None where there are none."""
        blob = self._store.blob_path(artifact.sha256)
        if not blob.is_file() or sha256_of_file(blob, on_progress) != artifact.sha256:
            return None
        return self._keep(blob, artifact.sha256, blob.stat().st_size, artifact)

    def _keep(self, path: Path, sha256: str, size_bytes: int, artifact: StoredArtifact) -> Path:
        if (sha256, size_bytes) != (artifact.sha256, artifact.size_bytes):
            raise FetchFailed(
                f"{artifact.name} arrived with {size_bytes} bytes and SHA-256 {sha256}; "
                f"expected {artifact.size_bytes} bytes and {artifact.sha256}",
                hint="the index served something else under this name: nothing was kept; try another index",
            )
        try:
            self._publish(path, artifact)
        except OSError as error:
            raise self._translated(error, 0) from error
        return self._store.path_of(artifact)

    def _publish(self, path: Path, artifact: StoredArtifact) -> None:
        """Bytes first, then the link, then the record that makes them count."""
        blob = self._store.blob_path(artifact.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(path, 0o400)
        _sync(path)
        os.replace(path, blob)
        _sync(blob.parent)
        link = self._store.path_of(artifact)
        link.parent.mkdir(parents=True, exist_ok=True)
        _link(link, blob)
        self._store.hashes.remember(link, artifact.sha256)
        write_atomically(link.parent / "artifact.json", encode(artifact))

    def remove(self, name: str) -> None:
        """Forget an artifact; `garbage` gives its bytes back."""
        folder = self._store.root / "artifacts" / name
        (folder / "artifact.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def garbage(self) -> int:
        """Remove blobs that no artifact names; the bytes that came free."""
        named = {artifact.sha256 for artifact in self._store.stored()}
        freed = 0
        for blob in (self._store.root / "blobs" / "sha256").glob("*/*"):
            if blob.name not in named:
                freed += blob.stat().st_size
                blob.unlink()
        return freed

    def _translated(self, error: OSError, missing_bytes: int) -> ModelyardError:
        available = shutil.disk_usage(self._store.root).free
        if available < max(missing_bytes, 1 << 20):
            return disk_full(self._store.root, missing_bytes, available)
        return ModelyardError(
            f"the model store {self._store.root} cannot be written: {error.strerror}",
            hint="look at its owner and permissions, or name another folder in MODELYARD_STATE",
        )


def disk_full(folder: Path, needed_bytes: int, available_bytes: int) -> ModelyardError:
    return ModelyardError(
        f"the disk of {folder} is too full: {needed_bytes:,} bytes needed, {available_bytes:,} available",
        hint="free some space, or set MODELYARD_STATE to a folder on a larger disk",
    )


def _link(link: Path, target: Path) -> None:
    """A relative link, so that the state directory can be moved; replaced atomically."""
    fresh = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    fresh.symlink_to(os.path.relpath(target, link.parent))
    os.replace(fresh, link)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
