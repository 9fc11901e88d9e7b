"""What the journal's newest records say of the last minute, for people who ask now."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from modelyard.observe.journal import Checkpoint, read_journal
from modelyard.records.base import Record
from modelyard.records.journal import RequestRecord

WINDOW_S = 60.0
# Bounds the time of a look: about 15,000 requests. Where that does not reach back a whole window, it says so.
TAIL_BYTES = 8 * 1024 * 1024
# A client that leaves, and one that is told what is wrong with its request, are no failure of ours.
_OURS = frozenset({"upstream_failed", "truncated", "unavailable", "gateway_stopped"})


class Traffic(Record):
    """One deployment's requests that ended within the last `covered_s` seconds. `failed` could not be answered or not
    to the end, the fault being ours; `refused` are the client's."""

    deployment: str
    covered_s: float
    requests: int
    failed: int
    refused: int
    completion_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.completion_tokens / self.covered_s if self.covered_s > 0 else 0.0


def recent_traffic(folder: Path, now: float, *, window_s: float = WINDOW_S) -> tuple[Traffic, ...]:
    """By deployment, of the journals in `folder` at `now` (Unix seconds); a deployment without requests is absent."""
    offsets, cut = dict[str, int](), False
    for path in folder.glob("*.ndjson"):
        size = _size(path)
        offsets[path.name] = max(0, size - TAIL_BYTES)
        cut = cut or size > TAIL_BYTES
    records: list[RequestRecord] = []
    checkpoint, more = Checkpoint(offsets=offsets), True
    while more:
        # Where the tail began within a line, that line holds no record, and is passed over.
        step = read_journal(folder, checkpoint)
        checkpoint, more = step.checkpoint, step.more
        records += step.records
    return summarise(records, now, window_s=window_s, whole=not cut)


def summarise(
    records: Iterable[RequestRecord], now: float, *, window_s: float = WINDOW_S, whole: bool = True
) -> tuple[Traffic, ...]:
    """Of `records` those that ended in the window. Unless they are `whole`, it begins with the oldest of them."""
    ended = [(record.at + record.total_s, record) for record in records]
    covered_s = window_s
    if not whole and ended:
        covered_s = min(window_s, max(1.0, now - min(at for at, _ in ended)))
    by_name: dict[str, list[RequestRecord]] = {}
    for at, record in ended:
        if now - covered_s <= at <= now + 1 and record.deployment:
            by_name.setdefault(record.deployment, []).append(record)
    return tuple(_traffic(name, found, covered_s) for name, found in sorted(by_name.items()))


def _traffic(name: str, found: list[RequestRecord], covered_s: float) -> Traffic:
    return Traffic(
        deployment=name,
        covered_s=covered_s,
        requests=len(found),
        failed=sum(record.outcome in _OURS for record in found),
        refused=sum(record.outcome == "refused" for record in found),
        completion_tokens=sum(record.completion_tokens for record in found),
    )


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
