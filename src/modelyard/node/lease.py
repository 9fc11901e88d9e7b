"""The lease: yard says "I live" into a file, and every shim ends its engine when it no longer hears it.

The file holds the boot's id and the monotonic time of the last renewal, twice: a reader that catches the writer in
the middle sees two different times and looks again. It is overwritten in place, so that a full disk cannot end it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

RENEW_EVERY_S = 0.5
_READ_ATTEMPTS = 5


class Lease:
    """The writer's side; yard alone has one, under the lock of the state directory."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._boot = boot_id()

    def renew(self, now: float | None = None) -> None:
        """Say "I live" as of `now` (monotonic seconds, the present if None); call it every RENEW_EVERY_S."""
        at = f"{time.monotonic() if now is None else now:020.6f}"
        os.pwrite(self._descriptor, f"{self._boot} {at} {at}\n".encode(), 0)

    def end(self) -> None:
        """Give the lease up: every shim ends its engine at its next look, at the latest when the lease runs out."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def remaining_s(path: str | Path, lease_s: float, now: float) -> float:
    """Seconds until the lease at `path` runs out at monotonic time `now`; 0 where it has, is not there, was written
    before this boot, or cannot be read: silence ends engines, it never keeps them."""
    for _ in range(_READ_ATTEMPTS):
        try:
            with open(path, "rb") as file:
                boot, first, second = file.read(256).decode("ascii").split()
            if first != second:
                continue
            renewed_at = float(first)
        except (OSError, ValueError):
            return 0.0
        if boot != boot_id() or renewed_at > now + RENEW_EVERY_S:
            return 0.0
        return max(0.0, renewed_at + lease_s - now)
    return 0.0


def kill_margin_s(lease_s: float) -> float:
    """How long before the end of the lease a shim begins to kill: long enough for the kernel to take down a group and
    its memory, short enough that a renewal or two may be late."""
    return min(1.0, lease_s / 5)


def boot_id() -> str:
    """Names this boot: monotonic times of another boot mean nothing."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
