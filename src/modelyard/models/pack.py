"""The form of a packed deployment, and how one is read: a folder, or the same folder as one uncompressed tar file.

    manifest.json        Pack: what is inside, each file with size and SHA-256; first in the tar file
    modelyard.yaml       the deployment file
    blobs/HASH           model files, by content
    wheels/NAME.whl      the engines' packages

Nothing is ever extracted by its name: a member is looked up in the manifest, must be a regular file of the size that
stands there, and is handed on as bytes that still have to prove their hash. The manifest's own hash is shown when a
pack is made and can be demanded when it is opened."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from modelyard.errors import FetchFailed, UsageError
from modelyard.models.hashing import CHUNK_BYTES
from modelyard.models.stored import Pin, StoredArtifact
from modelyard.records.base import Record, UnreadableRecord, decode

MANIFEST = "manifest.json"
DEPLOYMENT = "modelyard.yaml"
MAX_MANIFEST_BYTES = 64 << 20
DAMAGED = "it is damaged, or was changed: make it again, or copy it again"
_MEMBER = re.compile(r"modelyard\.yaml|blobs/[0-9a-f]{64}|wheels/[A-Za-z0-9_.+-]+\.whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"[A-Za-z0-9][\w.+ -]{0,199}", re.ASCII)


class PackedFile(Record):
    """`path` is the member's name."""

    path: str
    sha256: str
    size_bytes: int


class PackedEngine(Record):
    """An engine whose wheels are inside: those of the `build` whose lock file has this hash (empty: needs none)."""

    name: str
    version: str
    build: str
    lock_sha256: str


class Pack(Record, tag_field="schema", tag="pack/v1"):
    """`python` (3.11), `platform` (linux) and `machine` (x86_64) are what the wheels were chosen for."""

    made_by: str
    python: str
    platform: str
    machine: str
    files: tuple[PackedFile, ...]
    artifacts: tuple[StoredArtifact, ...]
    pins: tuple[Pin, ...] = ()
    engines: tuple[PackedEngine, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class OpenPack:
    """A pack whose manifest was read and found sound; `sha256` is the manifest's."""

    manifest: Pack
    sha256: str
    members: Iterator[tuple[str, int, IO[bytes]]]

    def files(self) -> Iterator[tuple[PackedFile, Iterator[bytes]]]:
        """Every file once, in the pack's order. Its bytes are to be read before the next one is asked for, and to be
        held against its hash. Raises FetchFailed for what the manifest does not say, and for what is missing."""
        expected = {file.path: file for file in self.manifest.files}
        for name, size, stream in self.members:
            file = expected.pop(name, None)
            if file is None or size != file.size_bytes:
                raise FetchFailed(f"the pack holds {name[:200]!r} as its manifest does not say", hint=DAMAGED)
            yield file, _chunks(stream)
        if expected:
            raise FetchFailed(f"the pack is cut short: {sorted(expected)[0]} is missing", hint=DAMAGED)


@contextmanager
def open_pack(path: Path) -> Generator[OpenPack]:
    """Raises UsageError where there is no pack, FetchFailed where it is damaged or wants to be more than data."""
    try:
        if path.is_dir():
            yield _open_folder(path)
        else:
            # "r:" takes no compressed file: what unpacks to a thousand times its size is refused unread.
            with tarfile.open(path, "r:") as tar:
                yield _open_tar(tar)
    except (FileNotFoundError, tarfile.ReadError) as error:
        raise UsageError(
            f"{path} is no pack: {error}", hint="a pack is a folder or a .tar file that `modelyard models pack` wrote"
        ) from error
    except (OSError, tarfile.TarError, EOFError) as error:
        raise FetchFailed(f"the pack {path} cannot be read: {error}", hint=DAMAGED) from error


def _open_folder(folder: Path) -> OpenPack:
    def member(name: str) -> tuple[str, int, IO[bytes]]:
        # The names of the manifest were checked: they cannot lead elsewhere, and a link at the end is not followed.
        stream = os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FetchFailed(f"{folder / name} is no regular file", hint=DAMAGED)
        return name, status.st_size, stream

    _, size, stream = member(MANIFEST)
    with stream:
        manifest, sha256 = _read_manifest(stream, size)

    def members() -> Iterator[tuple[str, int, IO[bytes]]]:
        for file in manifest.files:
            name, size, stream = member(file.path)
            with stream:
                yield name, size, stream

    return OpenPack(manifest, sha256, members())


def _open_tar(tar: tarfile.TarFile) -> OpenPack:
    def members() -> Iterator[tuple[str, int, IO[bytes]]]:
        for member in tar:
            stream = tar.extractfile(member) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
            if stream is None or member.sparse is not None:
                raise FetchFailed(f"the pack holds {member.name[:200]!r}, which is no plain file", hint=DAMAGED)
            yield member.name, member.size, stream

    found = members()
    name, size, stream = next(found, ("", 0, None))
    if name != MANIFEST or stream is None:
        raise UsageError("this is no pack: it does not begin with a manifest", hint="modelyard models pack makes one")
    manifest, sha256 = _read_manifest(stream, size)
    return OpenPack(manifest, sha256, found)


def _read_manifest(stream: IO[bytes], size_bytes: int) -> tuple[Pack, str]:
    if size_bytes > MAX_MANIFEST_BYTES:
        raise FetchFailed("the pack's manifest is too large to be one", hint=DAMAGED)
    data = stream.read(size_bytes)
    try:
        manifest = decode(data, Pack)
    except UnreadableRecord as error:
        raise FetchFailed(f"the pack's manifest is {error.message}", hint=DAMAGED) from error
    for problem in _problems(manifest):
        raise FetchFailed(f"the pack's manifest is not sound: {problem}", hint=DAMAGED)
    return manifest, hashlib.sha256(data).hexdigest()


def _problems(manifest: Pack) -> Iterator[str]:
    """What would let a pack reach beyond itself, or is not what we write."""
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths):
        yield "a file stands in it twice"
    for file in manifest.files:
        if not _MEMBER.fullmatch(file.path) or not _SHA256.fullmatch(file.sha256) or file.size_bytes < 0:
            yield f"it names {file.path[:200]!r}"
        if file.path.startswith("blobs/") and file.path != f"blobs/{file.sha256}":
            yield f"{file.path} does not carry its own hash"
    blobs = {file.sha256: file.size_bytes for file in manifest.files if file.path.startswith("blobs/")}
    for artifact in manifest.artifacts:
        yield from _artifact_problems(artifact, blobs)


def _artifact_problems(artifact: StoredArtifact, blobs: dict[str, int]) -> Iterator[str]:
    if artifact.place or artifact.format not in ("gguf", "huggingface") or not artifact.files:
        yield f"{artifact.name[:200]!r} is no artifact of its own"
    if not artifact.name.isprintable() or not artifact.title.isprintable() or not _ENTRY.fullmatch(artifact.entry):
        yield f"{artifact.name[:200]!r} has no proper name"
    for file in artifact.files:
        parts = file.path.split("/")
        inside = all(part and part.isprintable() and not part.startswith(".") and "\\" not in part for part in parts)
        if not inside or parts[0] != artifact.entry or len(file.path) > 500:
            yield f"{artifact.name[:200]!r} has a file {file.path[:200]!r}"
        if blobs.get(file.sha256) != file.size_bytes:
            yield f"{file.path[:200]!r} of {artifact.name[:200]!r} is not inside"
    if len({file.path for file in artifact.files}) != len(artifact.files) or artifact.entry == "artifact.json":
        yield f"{artifact.name[:200]!r} has two files of one name"
    if artifact.format == "gguf" and [file.path for file in artifact.files] != [artifact.entry]:
        yield f"{artifact.name[:200]!r} is more than one file"


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk
