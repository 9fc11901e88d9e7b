"""Reading the cache of Hugging Face's own client: weights that are there are used in place, after their hash was found
right. Nothing is ever written there.

    models--ORG--NAME/refs/REVISION          the commit that a branch or tag meant last
    models--ORG--NAME/blobs/HASH             the content, named by the hash that the hub gives for it
    models--ORG--NAME/snapshots/COMMIT/PATH  links to blobs

Layout: huggingface_hub's documentation, "Understand caching"."""

from __future__ import annotations

import os
import re
from pathlib import Path

from modelyard.errors import ModelRefused
from modelyard.models.card import UNKNOWN
from modelyard.models.download import Expected, git_sha1_of_file
from modelyard.models.hashing import FileHashes, Progress
from modelyard.models.hub_api import HubFile, Snapshot
from modelyard.models.references import HubReference

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class HubCache:
    """What the cache in `folder` holds of one repository; a reference's names are safe as parts of a path."""

    def __init__(self, folder: Path, reference: HubReference, hashes: FileHashes) -> None:
        self._root = folder / f"models--{reference.repository.replace('/', '--')}"
        self._revision = reference.revision
        self._hashes = hashes

    @property
    def blobs(self) -> Path:
        return self._root / "blobs"

    def snapshot(self) -> Snapshot | None:
        """What the cache has for the revision, where the hub may not or cannot be asked."""
        commit = self._commit()
        folder = self._root / "snapshots" / commit
        if not commit or not folder.is_dir():
            return None
        files: list[HubFile] = []
        for path in sorted(folder.rglob("*")):
            name = Path(os.path.realpath(path)).name
            if not path.is_dir() and _HASH.fullmatch(name) and self.blob(expected := _expected(name)) is not None:
                size = (self.blobs / name).stat().st_size
                full = Expected(size, expected.sha256, expected.git_sha1)
                files.append(HubFile(path.relative_to(folder).as_posix(), full))
        return Snapshot(commit, UNKNOWN, tuple(files))

    def blob(self, expected: Expected) -> Path | None:
        """Where content of this hash should lie, if it is there with the right size; it is not read."""
        name = expected.sha256 or expected.git_sha1
        path = self.blobs / name
        try:
            status = path.stat()
        except OSError:
            return None
        return path if name and path.is_file() and expected.size_bytes in (None, status.st_size) else None

    def verified(self, expected: Expected, on_progress: Progress) -> tuple[Path, str] | None:
        """The blob with its SHA-256, where its content is what its name says; None where it is absent or damaged."""
        path = self.blob(expected)
        if path is None:
            return None
        try:
            sha256 = self._hashes.of_file(path, on_progress)
            if expected.sha256:
                return (path, sha256) if sha256 == expected.sha256 else None
            return (path, sha256) if git_sha1_of_file(path) == expected.git_sha1 else None
        except (OSError, ModelRefused):
            return None

    def _commit(self) -> str:
        if _COMMIT.fullmatch(self._revision):
            return self._revision
        try:
            commit = (self._root / "refs" / self._revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""
        return commit if _COMMIT.fullmatch(commit) else ""


def _expected(name: str) -> Expected:
    return Expected(None, sha256=name) if len(name) == 64 else Expected(None, git_sha1=name)
