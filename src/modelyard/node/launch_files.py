"""The files of one launch: written by its shim for the engine's eyes only, removed when the launch is over."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil

from modelyard.node.shim_wire import ShimSpec

_SHARED_MEMORY = "/dev/shm"  # noqa: S108


def write(spec: ShimSpec) -> None:
    """Write the engine's files into the launch's private folder. Names come from our own adapters: a path is a defect
    there, and a ValueError here. Raises OSError."""
    for folder in filter(None, (spec.folder, spec.spec.scratch)):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    for name, content in spec.spec.files.items():
        if os.path.basename(name) != name:
            raise ValueError(f"a launch file is named {name!r}")
        path = os.path.join(spec.folder, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)


def shared_memory(scratch: str) -> list[str]:
    """Segments that the processes of a launch with this scratch folder have made."""
    return glob.glob(f"{_SHARED_MEMORY}/*modelyard-{os.path.basename(scratch)}-*")


def remove(spec: ShimSpec, spec_path: str) -> None:
    """Remove them, the engine's socket and the launch's own file; what is not there need not go."""
    address = spec.spec.address
    socket_file = [address.removeprefix("unix:")] if address.startswith("unix:") else []
    written = [os.path.join(spec.folder, name) for name in spec.spec.files]
    for path in [*socket_file, *written, spec_path]:
        with contextlib.suppress(OSError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(spec.folder)
    if spec.spec.scratch:
        shutil.rmtree(spec.spec.scratch, ignore_errors=True)
        for path in shared_memory(spec.spec.scratch):
            with contextlib.suppress(OSError):
                os.unlink(path)
