"""Reading journals from their end: what happened last is what people ask about, and journals are long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from heapq import merge
from pathlib import Path

from modelyard.observe.journal import record_of
from modelyard.records.journal import RequestRecord

# Bounds the memory of a look, whatever the size of the file.
BLOCK_BYTES = 1024 * 1024
# Nothing of ours is longer; where a line seems to be, its middle is passed over.
LONGEST_LINE_BYTES = 16 * 1024 * 1024
_ID_CHARACTERS = 8


def lines_backwards(path: Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The lines of a file, the last one first; one without its end is left out: its writer may still be at it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        at, rest, ended = file.seek(0, os.SEEK_END), b"", False
        while at > 0:
            size = min(block_bytes, at)
            at = at - size
            file.seek(at)
            lines = (file.read(size) + rest[:LONGEST_LINE_BYTES]).split(b"\n")
            rest = lines[0]
            for line in reversed(lines[1:]):
                if ended:
                    yield line
                ended = True
        if ended:
            yield rest


def newest(folder: Path) -> Iterator[RequestRecord]:
    """Every record of the journals in `folder`, by the time at which its request ended, the newest first."""
    return merge(*(_records(path) for path in folder.glob("*.ndjson")), key=ended_at, reverse=True)


def find(folder: Path, request_id: str) -> RequestRecord | None:
    """The record of a request. Its id names the worker, and so the file that is looked through first."""
    worker = request_id.removeprefix("req_")[:_ID_CHARACTERS]
    needle = b'"request_id":"%b"' % request_id.encode()
    for path in sorted(folder.glob("*.ndjson"), key=lambda path: worker not in path.name):
        for line in _lines_with(path, needle):
            record = record_of(line)
            if record is not None and record.request_id == request_id:
                return record
    return None


def ended_at(record: RequestRecord) -> float:
    """Unix seconds."""
    return record.at + record.total_s


def _records(path: Path) -> Iterator[RequestRecord]:
    for line in lines_backwards(path):
        record = record_of(line)
        if record is not None:
            yield record


def _lines_with(path: Path, needle: bytes) -> Iterator[bytes]:
    """Those lines that hold `needle`, the last one first. Most blocks hold none, and are not taken apart."""
    with path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), b""
        while at > 0:
            size = min(BLOCK_BYTES, at)
            at -= size
            file.seek(at)
            data = file.read(size) + rest
            # What stands before the first line end goes with the block before it.
            cut = data.find(b"\n") + 1 if at else 0
            rest = (data[:cut] or data)[:LONGEST_LINE_BYTES]
            if at and not cut:
                continue
            if needle in data:
                yield from (line for line in reversed(data[cut:].split(b"\n")) if needle in line)
