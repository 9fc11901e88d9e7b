"""The content-addressed store of fetched model files.

    blobs/sha256/AA/HASH      the bytes, read-only, only ever renamed into place after their hash was checked
    artifacts/KEY/            artifact.json (StoredArtifact) and a link for each file under the model's own file names,
                              because engines read the format off the suffix: to a blob, or to where weights lie that
                              are used in place
    pins/                     which artifact a reference that can move (a branch, a URL) was found to mean
    incoming/                 what is being fetched, named by the hash that it must have in the end: a later fetch goes
                              on from there
    partial/                  scratch; whatever lies there when the store is opened for writing is left over from a
                              process that died, and is removed
    hashes/                   remembered hashes of files (models.hashing)

Writers hold the lock; readers need none, since every file that a record names is complete."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from modelyard.clock import SYSTEM, Clock
from modelyard.errors import FetchFailed, ModelyardError
from modelyard.models.hashing import FileHashes, Progress, no_progress, sha256_of_file
from modelyard.models.stored import Pin, StoredArtifact, StoredFile
from modelyard.records.base import UnreadableRecord, decode, encode
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory, locked, write_atomically

# Left free for logs, journals and whoever else shares the disk.
RESERVE_BYTES = 64 << 20
# What an interrupted fetch left is kept this long for the next one, unless its space is needed.
KEPT_S = 7 * 24 * 3600.0
_PLAIN_NAME = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
_RECORD = "artifact.json"


class Store:
    """Reading needs no more than this; writing goes through `writing()`."""

    def __init__(self, state: StateDirectory, clock: Clock = SYSTEM) -> None:
        self.root = state.store
        self.clock = clock
        self.hashes = FileHashes(self.root / "hashes")

    def find(self, name: str) -> StoredArtifact | None:
        """The artifact stored under `name` if its record and its bytes are there, unchanged since they were checked."""
        artifact = self.record(name)
        if artifact is None or not all(self._is_whole(artifact, file) for file in artifact.files):
            return None
        return artifact

    def pinned(self, reference: str) -> StoredArtifact | None:
        """Like `find`, for a reference that was pinned to an artifact."""
        try:
            pin = decode(self.pin_path(reference).read_bytes(), Pin)
        except (OSError, UnreadableRecord):
            return None
        return self.find(pin.name) if pin.reference == reference else None

    def stored(self) -> list[StoredArtifact]:
        """Everything that has a readable record, by name; the bytes are not looked at."""
        records = [self._read(path) for path in (self.root / "artifacts").glob(f"*/{_RECORD}")]
        return sorted((found for found in records if found), key=lambda artifact: artifact.name)

    def record(self, name: str) -> StoredArtifact | None:
        """The record stored under `name`; the bytes are not looked at."""
        found = self._read(self.folder(name) / _RECORD)
        return found if found and found.name == name else None

    def pins(self) -> list[Pin]:
        found: list[Pin] = []
        for path in sorted((self.root / "pins").glob("*.json")):
            try:
                found.append(decode(path.read_bytes(), Pin))
            except (OSError, UnreadableRecord):
                continue
        return found

    def path_of(self, artifact: StoredArtifact) -> Path:
        """What engines are given: the file, or the folder, under its own name."""
        return self.folder(artifact.name) / artifact.entry

    def served(self, artifact: StoredArtifact) -> Artifact:
        """The artifact as plans speak of it."""
        return Artifact(
            name=artifact.title,
            format=artifact.format,
            path=str(self.path_of(artifact)),
            sha256=artifact.sha256,
            size_bytes=artifact.size_bytes,
            lineage=artifact.lineage,
            recommended=artifact.recommended,
            notes=artifact.notes,
        )

    def verify(self, artifact: StoredArtifact, on_progress: Progress = no_progress) -> None:
        """Hash the bytes again, whatever is remembered. Raises FetchFailed where they are not what was stored."""
        for file in artifact.files:
            try:
                found = sha256_of_file(self.folder(artifact.name) / file.path, on_progress)
            except OSError as error:
                raise FetchFailed(
                    f"{file.path} of the stored model {artifact.name} cannot be read: {error.strerror}",
                    hint=f"modelyard models remove {artifact.name}, and fetch it again",
                ) from error
            if found != file.sha256:
                raise FetchFailed(
                    f"{file.path} of the stored model {artifact.name} has SHA-256 {found}, not {file.sha256}",
                    hint="the disk is failing or someone changed it: "
                    f"modelyard models remove {artifact.name}, and fetch it again",
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

    def pin_path(self, reference: str) -> Path:
        return self.root / "pins" / f"{_digest(reference)}.json"

    def folder(self, name: str) -> Path:
        """A name of the catalogue names its folder; of anything else only a hash becomes part of a path."""
        if _PLAIN_NAME.fullmatch(name) and len(name) <= 63:
            return self.root / "artifacts" / name
        return self.root / "artifacts" / f"at-{_digest(name)}"

    def _read(self, path: Path) -> StoredArtifact | None:
        try:
            return decode(path.read_bytes(), StoredArtifact)
        except (FileNotFoundError, NotADirectoryError, UnreadableRecord):
            return None

    def _is_whole(self, artifact: StoredArtifact, file: StoredFile) -> bool:
        path = self.folder(artifact.name) / file.path
        try:
            same_size = path.stat().st_size == file.size_bytes
        except OSError:
            return False
        return same_size and self.hashes.of_file(path) == file.sha256


class StoreWriter:
    """What the holder of the lock may do."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._partial = store.root / "partial"
        self._incoming = store.root / "incoming"

    def clear_partial(self) -> None:
        """Remove what a dead fetch left. Its child may still be writing there for a moment: then a later start does."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def partial_folder(self) -> Path:
        """A new empty folder on the store's own disk, removed when writing ends."""
        folder = self._partial / secrets.token_hex(8)
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def incoming(self, hash_name: str) -> Path:
        """Where the file that must have this hash is being put together, perhaps by several fetches in turn."""
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._incoming / f"{hash_name}.part"

    def require_space(self, needed_bytes: int) -> None:
        """Raises ModelyardError with both numbers where the disk cannot take `needed_bytes` more."""
        available = shutil.disk_usage(self._store.root).free
        if available < needed_bytes + RESERVE_BYTES:
            raise disk_full(self._store.root, needed_bytes + RESERVE_BYTES, available)

    def put(self, chunks: Iterable[bytes], artifact: StoredArtifact) -> Path:
        """Store the bytes of a one-file artifact as they arrive. Returns the path that engines get."""
        [file] = artifact.files
        self.keep_chunks(chunks, file, artifact.name)
        return self.publish(artifact)

    def adopt(self, path: Path, artifact: StoredArtifact, on_progress: Progress = no_progress) -> Path:
        """Move a finished file of `partial_folder` into the store if it is what the one-file `artifact` says."""
        [file] = artifact.files
        self.keep(path, file, artifact.name, on_progress)
        return self.publish(artifact)

    def rescue(self, artifact: StoredArtifact, on_progress: Progress = no_progress) -> Path | None:
        """Publish bytes that an earlier process stored and died before naming; None where there are none."""
        if all(self.has(file, on_progress) for file in artifact.files):
            return self.publish(artifact)
        return None

    def has(self, file: StoredFile, on_progress: Progress = no_progress) -> bool:
        """Whether the store holds these bytes, read again."""
        blob = self._store.blob_path(file.sha256)
        return blob.is_file() and sha256_of_file(blob, on_progress) == file.sha256

    def keep_chunks(self, chunks: Iterable[bytes], file: StoredFile, owner: str) -> None:
        """Store bytes as they arrive; they must turn out to be what `file` says. `owner` is for messages."""
        path = self.partial_folder() / "blob"
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb") as sink:
                for chunk in chunks:
                    sink.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise self.translated(error, file.size_bytes - size) from error
        self.keep_hashed(path, digest.hexdigest(), size, file, owner)

    def keep(self, path: Path, file: StoredFile, owner: str, on_progress: Progress = no_progress) -> None:
        """Move a finished file of the store's own disk among the blobs if it is what `file` says."""
        self.keep_hashed(path, sha256_of_file(path, on_progress), path.stat().st_size, file, owner)

    def keep_hashed(self, path: Path, sha256: str, size_bytes: int, file: StoredFile, owner: str) -> None:
        """Like `keep`, for a file that was hashed just now."""
        if (sha256, size_bytes) != (file.sha256, file.size_bytes):
            raise FetchFailed(
                f"{owner} arrived with {size_bytes} bytes and SHA-256 {sha256}; "
                f"expected {file.size_bytes} bytes and {file.sha256}",
                hint="the source served something else under this name: nothing was kept; try another one",
            )
        blob = self._store.blob_path(sha256)
        try:
            blob.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(path, 0o400)
            _sync(path)
            os.replace(path, blob)
            _sync(blob.parent)
        except OSError as error:
            raise self.translated(error, 0) from error

    def link(self, artifact: StoredArtifact, places: Mapping[str, Path] | None = None) -> Path:
        """Make the artifact's folder of links, to the store's blobs or, for file paths in `places`, to files
        that are used where they lie. It does not count before `name` is called. Returns the path that engines get."""
        folder = self._store.folder(artifact.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in artifact.files:
                link = folder / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                place = (places or {}).get(file.path)
                blob = self._store.blob_path(file.sha256)
                _link(link, place if place is not None else Path(os.path.relpath(blob, link.parent)))
                self._store.hashes.remember(link, file.sha256)
        except OSError as error:
            raise self.translated(error, 0) from error
        return self._store.path_of(artifact)

    def name(self, artifact: StoredArtifact) -> None:
        """Write the record that makes the links count."""
        try:
            write_atomically(self._store.folder(artifact.name) / _RECORD, encode(artifact))
        except OSError as error:
            raise self.translated(error, 0) from error

    def publish(self, artifact: StoredArtifact, places: Mapping[str, Path] | None = None) -> Path:
        """Bytes first, then the links, then the record that makes them count."""
        path = self.link(artifact, places)
        self.name(artifact)
        return path

    def pin(self, reference: str, artifact: StoredArtifact) -> None:
        path = self._store.pin_path(reference)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, encode(Pin(reference=reference, name=artifact.name)))
        except OSError as error:
            raise self.translated(error, 0) from error

    def remove(self, name: str) -> None:
        """Forget an artifact and what is pinned to it; `garbage` gives its bytes back."""
        folder = self._store.folder(name)
        (folder / _RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        for pin in self._store.pins():
            if pin.name == name:
                self._store.pin_path(pin.reference).unlink(missing_ok=True)

    def discard(self, artifact: StoredArtifact) -> None:
        """Remove an artifact that was refused, with the bytes that no other one names."""
        self.remove(artifact.name)
        named = self._named()
        for file in artifact.files:
            if file.sha256 not in named:
                self._store.blob_path(file.sha256).unlink(missing_ok=True)

    def _named(self) -> set[str]:
        return {file.sha256 for artifact in self._store.stored() for file in artifact.files}

    def garbage(self, *, older_than_s: float = 0.0, keep: Collection[Path] = ()) -> int:
        """Remove blobs that no artifact names, and unfinished files, untouched for so long and not in `keep`; the bytes
        that came free."""
        named = self._named()
        blobs = (self._store.root / "blobs" / "sha256").glob("*/*")
        unnamed = [*(blob for blob in blobs if blob.name not in named), *self._incoming.glob("*.part")]
        freed = 0
        for path in unnamed:
            status = path.stat()
            if path in keep or (older_than_s and self._store.clock.wall() - status.st_ctime < older_than_s):
                continue
            freed += status.st_size
            path.unlink()
        return freed

    def translated(self, error: OSError, missing_bytes: int) -> ModelyardError:
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
    """Replaced atomically. Links to blobs are relative, so that the state directory can be moved."""
    fresh = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    fresh.symlink_to(target)
    os.replace(fresh, link)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:24]
