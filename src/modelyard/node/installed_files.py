"""What a venv's packages say of their own files (RECORD, as packaging standards have it), and whether it is true."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package: `folder` is its *.dist-info."""

    name: str
    version: str
    folder: Path

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def record(self) -> Path:
        """Its own list of files with their hashes."""
        return self.folder / "RECORD"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not as it was installed; `how` is missing, changed or unreadable."""

    package: str
    path: Path
    how: str


def packages(root: Path) -> tuple[Package, ...]:
    """Every package in the venv at `root`, by name."""
    found: list[Package] = []
    for folder in root.glob("lib/python3*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        found.append(Package(name, version, folder))
    return tuple(sorted(found, key=lambda one: one.name))


def records(root: Path) -> dict[str, str]:
    """Hex SHA-256 of every package's RECORD, by `name==version`."""
    return {one.pin: hashlib.sha256(one.record.read_bytes()).hexdigest() for one in packages(root)}


def damages(packages: Sequence[Package], on_bytes: Callable[[int, int], None]) -> list[Damage]:
    """Files that are missing or differ from their package's RECORD. `on_bytes` is told how many bytes of how many have
    been read. Lines without a hash (RECORD itself, bytecode) ask for nothing."""
    found: list[Damage] = []
    listed: list[tuple[Package, Path, str]] = []
    done, whole = 0, 0
    for package in packages:
        try:
            lines = list(_recorded(package))
        except (OSError, ValueError, csv.Error):
            found.append(Damage(package.name, package.record, "missing or unreadable"))
            continue
        listed += [(package, path, digest) for path, digest, _ in lines]
        whole += sum(size for _, _, size in lines)

    def heard(count: int) -> None:
        nonlocal done
        done += count
        on_bytes(done, whole)

    for package, path, digest in listed:
        if how := _difference(path, digest, heard):
            found.append(Damage(package.name, path, how))
    return found


def _recorded(package: Package) -> Iterator[tuple[Path, str, int]]:
    """(file, hash, bytes) of each line of RECORD that has a hash. Hashes are in URL-safe base64 without padding."""
    text = package.record.read_text(encoding="utf-8")
    for path, digest, size in csv.reader(io.StringIO(text)):
        if digest.startswith("sha256="):
            yield package.folder.parent / path, digest.removeprefix("sha256="), int(size or 0)


def _difference(file: Path, recorded: str, on_bytes: Callable[[int], None]) -> str:
    """Empty where the file has this hash."""
    try:
        digest = _sha256(file, on_bytes)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return "" if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == recorded else "changed"


def size_bytes(root: Path) -> int:
    """What a folder takes on the disk, links within it once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def _sha256(file: Path, on_bytes: Callable[[int], None]) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK_BYTES):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.digest()
