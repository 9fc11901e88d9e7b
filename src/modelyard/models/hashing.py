"""SHA-256 of files, remembered: a file of the same path, size, times and inode is not read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from modelyard.errors import ModelRefused
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.records.fingerprint import sha256_of
from modelyard.state import write_atomically

CHUNK_BYTES = 4 << 20
Progress = Callable[[str, int, int | None], None]
"""Called with a step's name, what is done and the whole (None where unknown), in bytes."""


def no_progress(step: str, done: int, total: int | None) -> None:
    """For callers that show nothing."""


class Identity(Record):
    """What must be unchanged for a remembered hash to hold. ctime cannot be set back by the file's owner."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class KnownHash(Record, tag_field="schema", tag="known-hash/v1"):
    identity: Identity
    sha256: str


class FileHashes:
    """Hashes of local files, remembered in `folder`, one small record per path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of_file(self, path: Path, on_progress: Progress = no_progress) -> str:
        """Hex SHA-256 of the content. Raises ModelRefused where the file cannot be read or changes meanwhile."""
        try:
            identity = _identity(path)
            if known := self._known(identity):
                return known
            digest = sha256_of_file(path, on_progress)
            if _identity(path) != identity:
                raise ModelRefused(f"{path} changed while it was read", hint="wait until it is complete")
        except OSError as error:
            raise ModelRefused(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
        with suppress(OSError):  # a full disk must not keep a model that is there from being served
            self.remember(path, digest)
        return digest

    def of_folder(self, folder: Path, files: Sequence[Path], on_progress: Progress = no_progress) -> str:
        """Hex SHA-256 over the relative names, sizes and hashes of `files`, in the order of their names."""
        return sha256_of(
            [
                [str(path.relative_to(folder)), path.stat().st_size, self.of_file(path, on_progress)]
                for path in sorted(files)
            ]
        )

    def remember(self, path: Path, sha256: str) -> None:
        """Note the hash of a file that was just hashed on its way to `path`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._record(_real(path)), encode(KnownHash(identity=_identity(path), sha256=sha256)))

    def _known(self, identity: Identity) -> str | None:
        try:
            known = decode(self._record(identity.path).read_bytes(), KnownHash)
        except (OSError, UnreadableRecord):
            return None
        return known.sha256 if known.identity == identity else None

    def _record(self, real_path: str) -> Path:
        return self._folder / f"{sha256_of(real_path)}.json"


def sha256_of_file(path: Path, on_progress: Progress = no_progress) -> str:
    """Hex SHA-256 of the content, read in pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        total, done = os.fstat(file.fileno()).st_size, 0
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            done += size
            on_progress("hash", done, total)
    return digest.hexdigest()


def _identity(path: Path) -> Identity:
    status = path.stat()
    return Identity(
        path=_real(path),
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
        device=status.st_dev,
    )


def _real(path: Path) -> str:
    """Printable also where the name is not UTF-8."""
    return os.fsencode(path.resolve()).decode("utf-8", "backslashreplace")
