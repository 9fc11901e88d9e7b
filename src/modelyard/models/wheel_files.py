"""Wheels as files, for a machine that no index reaches."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from modelyard.errors import EnvironmentFailed
from modelyard.models.hashing import Progress
from modelyard.packages import explain_uv_failure, pip_environ, pip_process
from modelyard.settings import Settings

POLL_S = 0.2


def fetch_wheels(lock: str, size_bytes: int, folder: Path, settings: Settings, on_progress: Progress) -> list[Path]:
    """The wheel for this Python and machine of everything that a lock file names, held to its hashes, and nothing else.
    `size_bytes` is about what will arrive; `folder` is empty before. Raises EnvironmentFailed in the client's words."""
    wheels, scratch, errors, names = folder / "wheels", folder / "tmp", folder / "pip.log", folder / "lock.txt"
    scratch.mkdir()
    names.write_text(lock)
    arguments = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    arguments += ["--dest", str(wheels), "--requirement", str(names)]
    environ = pip_environ(settings.index, settings.environ) | {"TMPDIR": str(scratch)}
    with errors.open("wb") as log, pip_process(arguments, environ, cwd=folder, stderr=log.fileno()) as child:
        while child.poll() is None:
            on_progress("wheels", min(_bytes_below(folder), size_bytes), size_bytes)
            time.sleep(POLL_S)
    if child.returncode != 0:
        cause, hint = explain_uv_failure(errors.read_text(errors="replace"))
        raise EnvironmentFailed(f"the engine's wheels could not be fetched: {cause}", hint=hint)
    shutil.rmtree(scratch, ignore_errors=True)
    return sorted(wheels.glob("*.whl"))


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_dir() else path.lstat().st_size
        except OSError:
            continue
    return total
