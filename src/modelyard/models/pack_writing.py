"""Writing a pack: it appears when it is whole, and an interrupted one leaves nothing."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from modelyard.errors import FetchFailed, ModelyardError, UsageError
from modelyard.models.hashing import CHUNK_BYTES, Progress
from modelyard.models.pack import MANIFEST, Pack
from modelyard.models.store import RESERVE_BYTES, disk_full
from modelyard.records.base import encode


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


_Add = Callable[[str, int, _Readable], None]


def write_pack(out: Path, manifest: Pack, sources: Mapping[str, Path | bytes], on_progress: Progress) -> str:
    """Write the pack at `out`, a tar file where it ends in .tar, a folder otherwise; the SHA-256 of its manifest.

    Raises UsageError where `out` is there already, FetchFailed where a source changed meanwhile."""
    require_free(out, manifest.size_bytes)
    data = encode(manifest)
    fresh = out.with_name(f".{out.name}.part")
    _remove(fresh)
    try:
        with _tar(fresh) if out.suffix == ".tar" else _folder(fresh) as add:
            add(MANIFEST, len(data), io.BytesIO(data))
            _add_files(add, manifest, sources, on_progress)
        os.replace(fresh, out)
    except OSError as error:
        raise ModelyardError(
            f"{out} cannot be written: {error.strerror or error}", hint="choose another place"
        ) from error
    finally:
        _remove(fresh)
    return hashlib.sha256(data).hexdigest()


def require_free(out: Path, needed_bytes: int) -> None:
    """Raises UsageError where a pack at `out` would overwrite something, ModelyardError where it would not fit."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is there already", hint="name another file or folder with --output, or remove it")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no folder", hint="make it first, or name another place with --output")
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes + RESERVE_BYTES:
        error = disk_full(out.parent, needed_bytes + RESERVE_BYTES, free)
        raise ModelyardError(error.message, hint="free some space, or name a place on a larger disk with --output")


def _add_files(add: _Add, manifest: Pack, sources: Mapping[str, Path | bytes], on_progress: Progress) -> None:
    done = 0
    for file in manifest.files:
        source = sources[file.path]
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            hashed = _Hashed(stream, on_progress, done, manifest.size_bytes)
            try:
                add(file.path, file.size_bytes, hashed)
            except _Short as error:
                raise FetchFailed(f"{source!s} changed while it was packed", hint="pack again") from error
        done += file.size_bytes
        if hashed.hexdigest != file.sha256:
            raise FetchFailed(f"{file.path} changed while it was packed", hint="pack again")


class _Short(Exception):
    """A source has fewer bytes than it had."""


class _Hashed:
    """Reads on, and hashes what passes."""

    def __init__(self, stream: _Readable, on_progress: Progress, before: int, total: int) -> None:
        self._stream, self._digest = stream, hashlib.sha256()
        self._on_progress, self._at, self._total = on_progress, before, total

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._stream.read(size)
        if len(chunk) < size:
            raise _Short
        self._digest.update(chunk)
        self._at += len(chunk)
        self._on_progress("pack", self._at, self._total)
        return chunk

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def _tar(path: Path) -> Generator[_Add]:
    """The same content gives the same file: no times, no owners."""
    with path.open("xb") as file:
        with tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, copybufsize=CHUNK_BYTES) as tar:

            def add(name: str, size_bytes: int, stream: _Readable) -> None:
                member = tarfile.TarInfo(name)
                member.size, member.mode = size_bytes, 0o644
                tar.addfile(member, stream)

            yield add
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _folder(path: Path) -> Generator[_Add]:
    path.mkdir()

    def add(name: str, size_bytes: int, stream: _Readable) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        with (path / name).open("xb") as file:
            while size_bytes:
                chunk = stream.read(min(size_bytes, CHUNK_BYTES))
                file.write(chunk)
                size_bytes -= len(chunk)
            file.flush()
            os.fsync(file.fileno())

    yield add


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
