"""The journal: one record per finished request, in the file before the client has its last byte.

A write reaches the kernel at once, so that the death of this process loses nothing; the disk is asked once a second,
so that a power cut loses at most that second."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord

SYNC_INTERVAL_S = 1.0


class JournalWriter:
    """Appends to a file of its own in `folder`: no other process ever writes it. Without a folder it only counts."""

    def __init__(self, folder: Path | None) -> None:
        self.worker = secrets.token_hex(4)
        self.written = 0
        self.failed = 0
        self._unsynced = False
        self._descriptor = -1
        if folder is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(folder / f"gateway-{self.worker}.ndjson", flags, 0o600)

    def write(self, record: RequestRecord) -> None:
        """A full disk must not end service: the record is counted as lost and said so, the answer goes out."""
        self.written += 1
        if self._descriptor < 0:
            return
        try:
            os.write(self._descriptor, encode(record) + b"\n")
            self._unsynced = True
        except OSError as error:
            self.failed += 1
            print(f"error: journal: {error.strerror}: request {record.request_id} is not recorded", flush=True)

    async def sync_forever(self) -> None:
        """Ask the disk once a second, off the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            if self._unsynced:
                self._unsynced = False
                await loop.run_in_executor(None, self._sync)

    def close(self) -> None:
        if self._descriptor >= 0:
            self._sync()
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            print(f"error: journal: {error.strerror}", flush=True)
