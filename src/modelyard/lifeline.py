"""How children learn that their parent is gone: a pipe that only the parent holds open, and the kernel's own signal."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def watch_lifeline(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """End this process at once when the pipe's writing end closes. The kernel is asked for a SIGKILL too, for the case
    that this process is stopped or its loop is stuck."""
    die_with_parent()
    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, _read_or_exit, descriptor)


def die_with_parent() -> None:
    """SIGKILL this process when its parent dies (Linux; a no-op elsewhere)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _read_or_exit(descriptor: int) -> None:
    if os.read(descriptor, 1) == b"":
        os._exit(0)
