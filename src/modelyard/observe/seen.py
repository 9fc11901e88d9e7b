"""Which records a projection has counted already, so that reading one twice counts it once."""

from __future__ import annotations

from bisect import bisect_right

from modelyard.records.journal import RequestRecord

# A worker's sequence has no gaps but for lines that a damaged disk lost; beyond this many the oldest gaps are closed.
MAX_RUNS = 1000


class SeenRecords:
    """Remembers (worker, sequence) as runs of consecutive numbers: one pair per worker however many records, and
    records that finish out of order cost nothing in the end."""

    def __init__(self) -> None:
        self._runs: dict[str, list[tuple[int, int]]] = {}

    def add(self, record: RequestRecord) -> bool:
        """Whether the record is new; it is not any more afterwards."""
        runs, number = self._runs.setdefault(record.worker, []), record.sequence
        at = bisect_right(runs, number, key=lambda run: run[0])
        low, high = number, number
        if at and runs[at - 1][1] >= number:
            return False
        if at < len(runs) and runs[at][0] == number + 1:
            high = runs.pop(at)[1]
        if at and runs[at - 1][1] == number - 1:
            at -= 1
            low = runs.pop(at)[0]
        runs.insert(at, (low, high))
        if len(runs) > MAX_RUNS:
            runs[:2] = [(runs[0][0], runs[1][1])]
        return True
