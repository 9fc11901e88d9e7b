"""The journal: one record per finished request, in the file before the client has its last byte.

A write reaches the kernel at once, so that the death of this process loses nothing; the disk is asked once a second,
so that a power cut loses at most that second. Then it is also said up to which record all answers are on their way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord, Sent

SYNC_INTERVAL_S = 1.0


class JournalWriter:
    """Appends to a file of its own in `folder`: no other process ever writes it. Without a folder it only counts.

    `sequence` is the number of the next record: numbers stand in the file in order and without gaps."""

    def __init__(self, folder: Path | None) -> None:
        self.worker = secrets.token_hex(4)
        self.sequence = 1
        self.failed = 0
        self._sent = 0
        self._unsynced = False
        self._torn = False
        self._descriptor = -1
        if folder is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(folder / self.name, flags, 0o600)

    @property
    def name(self) -> str:
        """Of the file."""
        return f"gateway-{self.worker}.ndjson"

    def size_bytes(self) -> int:
        """Of the file, with all that was written so far."""
        return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else 0

    def write(self, record: RequestRecord) -> None:
        """A full disk must not end service: the record is counted as lost and said so, the answer goes out."""
        self.sequence += 1
        if self._descriptor < 0:
            return
        try:
            self._append(encode(record) + b"\n")
        except OSError as error:
            self._lost(record, error.strerror or str(error))

    def _append(self, line: bytes) -> None:
        if self._torn or os.write(self._descriptor, line) != len(line):
            self._write_after_tear(line)
        self._unsynced = True

    def _write_after_tear(self, line: bytes) -> None:
        """Less than a line was written, just now or before: end that line, then write this one whole or not at all."""
        self._torn = True
        for part in (b"\n", line):
            if os.write(self._descriptor, part) != len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def _lost(self, record: RequestRecord, cause: str) -> None:
        self.failed += 1
        # The disk that is full may be the one that our output goes to.
        with contextlib.suppress(OSError):
            print(f"error: journal: {cause}: request {record.request_id} is not recorded", flush=True)

    async def sync_forever(self, is_sent: Callable[[], bool]) -> None:
        """Ask the disk once a second, off the event loop. `is_sent` tells whether every answer that has ended is with
        the kernel."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            if self.sequence - 1 > self._sent:
                written = self.sequence - 1
                # What is written in a turn of the loop goes to the kernel at the end of that turn, or of the next.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if is_sent():
                    self.note_sent(written)
            if self._unsynced:
                self._unsynced = False
                await loop.run_in_executor(None, self._sync)

    def note_sent(self, sequence: int) -> None:
        """The answers of all records up to `sequence` are on their way."""
        self._sent = sequence
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self._append(encode(Sent(worker=self.worker, sequence=sequence, at=time.time())) + b"\n")

    def close(self, *, is_sent: bool = False) -> None:
        if self._descriptor >= 0:
            if is_sent and self.sequence - 1 > self._sent:
                self.note_sent(self.sequence - 1)
            self._sync()
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync(self) -> None:
        with contextlib.suppress(OSError):
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                print(f"error: journal: {error.strerror}", flush=True)
