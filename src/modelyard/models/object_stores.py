"""Object stores through fsspec, an optional package: one file copied, in pieces, with what went wrong in our words.

Credentials are the driver's own matter (environment, profile, instance role): none passes through a reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.errors import FetchFailed, UsageError
from modelyard.models.card import printable
from modelyard.models.download import Meter, Unwritable
from modelyard.models.hashing import CHUNK_BYTES
from modelyard.models.references import ObjectReference

# Which package brings the driver of which scheme; fsspec itself has those of `memory` and a few more.
_DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "oss": "ossfs",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file of an object store. Drivers raise errors of every kind; each becomes FetchFailed with their words."""

    files: Any
    path: str
    shown: str

    def size_bytes(self) -> int | None:
        try:
            size: object = self.files.info(self.path).get("size")
        except Exception as error:
            raise self._failed(error) from error
        return size if isinstance(size, int) else None

    def read_beside(self, suffix: str, limit_bytes: int) -> bytes:
        """The first bytes of the file of the same name and `suffix`; empty where there is none."""
        try:
            if not self.files.exists(self.path + suffix):
                return b""
            with self.files.open(self.path + suffix, "rb") as file:
                return bytes(file.read(limit_bytes))
        except Exception as error:
            raise self._failed(error) from error

    def copy_to(self, path: Path, meter: Meter) -> None:
        """Append to `path` what it lacks. Raises Unwritable for our disk."""
        at = path.stat().st_size if path.exists() else 0
        with path.open("ab", buffering=0) as target:
            for chunk in self._chunks(at):
                try:
                    target.write(chunk)
                except OSError as error:
                    raise Unwritable(error, len(chunk)) from error
                at += len(chunk)
                meter.at(path, at)

    def _chunks(self, at: int) -> Any:
        try:
            with self.files.open(self.path, "rb") as file:
                file.seek(at)
                while chunk := file.read(CHUNK_BYTES):
                    yield bytes(chunk)
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> FetchFailed:
        if isinstance(error, FileNotFoundError):
            return FetchFailed(f"{self.shown} is not there", hint="check the bucket and the path")
        said = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 300)
        return FetchFailed(
            f"{self.shown} cannot be read: {said}",
            hint="check the driver's credentials (its own environment variables or profile) and the network",
        )


def open_source(reference: ObjectReference) -> Source:
    """Raises UsageError where fsspec, or its driver for this scheme, is not installed."""
    driver = _DRIVERS.get(reference.scheme)
    try:
        import fsspec  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise _not_installed(reference, "fsspec" + (f" {driver}" if driver else "")) from error
    try:
        files: Any = fsspec.filesystem(reference.scheme)  # pyright: ignore[reportUnknownMemberType]
    except ImportError as error:
        raise _not_installed(reference, driver or "the driver that fsspec names") from error
    except ValueError as error:
        raise UsageError(
            f"{reference.scheme}:// is no kind of place that models are fetched from",
            hint="understood are hf://, ollama://, https://, and what fsspec has a driver for: s3://, gs://, az://",
        ) from error
    return Source(files, reference.url.partition("?")[0], str(reference))


def _not_installed(reference: ObjectReference, packages: str) -> UsageError:
    return UsageError(
        f"{reference.scheme}:// needs packages that are not installed: {packages}",
        hint=f"install them beside Modelyard: pip install 'modelyard[object-stores]' {packages}",
    )
