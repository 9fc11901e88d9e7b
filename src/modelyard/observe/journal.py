"""Reading the journals that gateway workers append to: in steps, from a checkpoint, whatever a crash left in them."""

from __future__ import annotations

import os
from pathlib import Path

from modelyard.records.base import Record, UnreadableRecord, decode
from modelyard.records.journal import RequestRecord, within

# Bounds the memory of one step; a record is a few hundred bytes.
STEP_BYTES = 4 * 1024 * 1024


class Checkpoint(Record, tag_field="schema", tag="checkpoint/v1"):
    """How far each file was read: file name -> byte offset of the first line not read yet."""

    offsets: dict[str, int]


BEGINNING = Checkpoint(offsets={})


class Step(Record):
    """What one read brought. `unreadable` counts lines that hold no record of this version; `checkpoint` is where the
    next step goes on; `more` says that it will find more already."""

    records: tuple[RequestRecord, ...]
    unreadable: int
    checkpoint: Checkpoint
    more: bool


def read_journal(folder: Path, after: Checkpoint = BEGINNING, *, step_bytes: int = STEP_BYTES) -> Step:
    """The records in `folder` after a checkpoint, at most `step_bytes` of them; each worker's in the order written.

    A last line without its end is left for a later step: its writer may still be at it. Files that are gone leave the
    checkpoint; a file shorter than its checkpoint was replaced and is read from its beginning. A line longer than
    `step_bytes` is nothing of ours and is passed over."""
    records: list[RequestRecord] = []
    unreadable, offsets, more, room = 0, dict[str, int](), False, step_bytes
    for path in sorted(folder.glob("*.ndjson")):
        start, data, limited = _read(path, after.offsets.get(path.name, 0), room)
        whole = data[: data.rfind(b"\n") + 1]
        if limited and not whole and room == step_bytes:
            whole, unreadable = data, unreadable + 1
        for line in whole.split(b"\n")[:-1]:
            whole_record = within(line)
            record = _decoded(whole_record)
            records += [record] if record else []
            unreadable += record is None or len(whole_record) < len(line)
        offsets[path.name] = start + len(whole)
        room -= len(whole)
        more = more or limited
    return Step(records=tuple(records), unreadable=unreadable, checkpoint=Checkpoint(offsets=offsets), more=more)


def _read(path: Path, start: int, room: int) -> tuple[int, bytes, bool]:
    """Where reading began, at most `room` bytes from there, and whether the file holds more than that."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(start if start <= size else 0)
            return start, file.read(min(room, size - start)), size - start > room
    except FileNotFoundError:
        return 0, b"", False


def record_of(line: bytes) -> RequestRecord | None:
    """The line's record. A write that a full disk cut short has the next record on its line: that one is whole."""
    return _decoded(within(line))


def _decoded(line: bytes) -> RequestRecord | None:
    try:
        return decode(line, RequestRecord)
    except UnreadableRecord:
        return None
