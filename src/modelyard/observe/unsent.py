"""Records whose client may not have had the end of its answer: those behind a worker's last word on what was sent."""

from __future__ import annotations

from modelyard.observe.journal import Step
from modelyard.records.journal import RequestRecord

# A word comes each second; a file without any, of an older version, must not be held in memory whole.
MOST = 100_000


class Unsent:
    """Follows journals. Of a worker that ended by itself nothing remains; of one that was killed, what it wrote in its
    last moments: there the mark means that nobody can say. Of one that lives, what it has written just now."""

    def __init__(self) -> None:
        self._behind: dict[str, dict[int, RequestRecord]] = {}

    def take(self, step: Step) -> None:
        """The next step of the journal."""
        for record in step.records:
            behind = self._behind.setdefault(record.worker, {})
            behind[record.sequence] = record
            if len(behind) > MOST:
                del behind[next(iter(behind))]
        for sent in step.sent:
            behind = self._behind.get(sent.worker, {})
            # In order: a worker numbers its records as it writes them.
            while behind and (first := next(iter(behind))) <= sent.sequence:
                del behind[first]

    def records(self) -> tuple[RequestRecord, ...]:
        """Each worker's in the order written."""
        return tuple(record for behind in self._behind.values() for record in behind.values())
