"""Vendors' tools as children: their words, or why there are none. A tool that hangs costs its time limit, no more."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIMEOUT_S = 3.0
# `-q -x` of sixteen GPUs is well under half of this.
_MOST_BYTES = 4 << 20
# One that writes without end must not fill the disk in its seconds.
_ENDS_IT_BYTES = 64 << 20
_FOLDERS = (
    *("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/run/current-system/sw/bin"),
    *("/opt/rocm/bin", "/usr/lib/wsl/lib"),
)
# Ascend's installer leaves it to the login shell to name its driver's libraries; elsewhere there are no such folders.
_LIBRARIES = ":".join(f"/usr/local/Ascend/driver/lib64{folder}" for folder in ("", "/common", "/driver"))


@dataclass(frozen=True, slots=True)
class Said:
    """What a tool wrote. `failed` says in words why it cannot be used; None where all is well. One that `hung` waits
    for its driver: another tool of the same vendor would wait too."""

    text: str = ""
    failed: str | None = None
    hung: bool = False


Run = Callable[[Sequence[str]], Said | None]


def run_tool(argv: Sequence[str]) -> Said | None:
    """None where the tool is not installed. It runs without input, in a session of its own, and with C's locale."""
    path = os.pathsep.join((os.defpath, *_FOLDERS))
    program = shutil.which(argv[0], path=path)
    if program is None:
        return None
    with tempfile.TemporaryFile() as out:
        try:
            child = subprocess.Popen(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                env={"PATH": path, "LC_ALL": "C", "LD_LIBRARY_PATH": _LIBRARIES},
                start_new_session=True,
            )
        except OSError as error:
            return Said(failed=f"{argv[0]} cannot be started: {error.strerror}")
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (_ENDS_IT_BYTES, _ENDS_IT_BYTES))
        try:
            code = child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _end(child)
            return Said(failed=f"{argv[0]} did not answer within {TIMEOUT_S:g} s", hung=True)
        out.seek(0)
        text = out.read(_MOST_BYTES).decode(errors="replace")
    if code != 0:
        return Said(text, failed=f"{argv[0]} ended with exit status {code}")
    return Said(text)


def _end(child: subprocess.Popen[bytes]) -> None:
    """A tool that is stuck in its driver takes no signal: it is not waited for."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(0.2)
    except (subprocess.TimeoutExpired, ProcessLookupError):
        return
