"""uv's cache for environments: what was fetched once is not fetched again, and what an interruption left is removed.

It lies in the state directory, on the disk of the environments, which link its files: a second copy costs nothing
there, and a whole installation needs no room anywhere else. A user who names UV_CACHE_DIR wants his own cache used,
which is then uv's and his affair."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PackageCache:
    """A cache in use. `lock` is a descriptor for uv to inherit: while one process has it, nobody tidies. One that is
    not `ours` is the user's."""

    folder: Path
    lock: int
    ours: bool

    def is_ours_alone(self) -> bool:
        """Whether nobody else uses it now, nor begins to until this use ends; False for a user's cache."""
        if not self.ours:
            return False
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A conversion that fails has given up the shared lock too.
            fcntl.flock(self.lock, fcntl.LOCK_SH)
            return False
        return True


@contextlib.contextmanager
def use(folder: Path, environ: Mapping[str, str]) -> Generator[PackageCache]:
    """The cache for uv processes with `environ`: at `folder`, unless they name another. Tidied before and after, where
    nobody else uses it."""
    named = environ.get("UV_CACHE_DIR")
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _tidy(folder, lock)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield PackageCache(Path(named) if named else folder, lock, ours=not named)
    finally:
        _tidy(folder, lock)
        os.close(lock)


def _tidy(folder: Path, lock: int) -> None:
    """Removes what uv unpacks and downloads into before it counts; a uv that is killed leaves it behind."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for temporary in (*folder.glob(".tmp*"), *folder.glob("*/.tmp*")):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
