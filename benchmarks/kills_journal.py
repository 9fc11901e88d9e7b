"""Whether the journal tells the same story as the clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kills_client import Answer
from modelyard.observe.journal import BEGINNING, read_journal
from modelyard.records.journal import RequestRecord
from modelyard.selftest.asking import Verdict

# What the journal may call an answer of each kind.
OUTCOMES: dict[Verdict, frozenset[str]] = {
    "whole": frozenset({"complete"}),
    "unavailable": frozenset({"unavailable", "upstream_failed", "gateway_stopped"}),
    "cut": frozenset({"truncated", "gateway_stopped"}),
}


@dataclass(frozen=True)
class JournalCheck:
    """`received` answers came to a client to their end; `surplus` records are of requests that did not."""

    received: int
    records: int
    surplus: int
    unfinished: int
    unreadable: int
    problems: tuple[str, ...]

    @property
    def in_words(self) -> str:
        text = (
            f"journal: {self.received} answers received whole, {self.records} records, "
            f"{self.surplus} of them of the {self.unfinished} requests that did not end at the client"
        )
        return text + "".join(f"\n    WRONG: {problem}" for problem in self.problems)


def check(folder: Path, answers: Iterable[Answer]) -> JournalCheck:
    """Every answer that was received to its end has one record, with a fitting outcome; there are no more records
    than requests."""
    records, unreadable = _records(folder)
    counts = Counter(record.request_id for record in records)
    outcomes = {record.request_id: record.outcome for record in records}
    received = [answer for answer in answers if answer.was_received]
    unfinished = [answer for answer in answers if not answer.was_received]
    problems = [f"{one.request_id} has no record" for one in received if one.request_id not in counts]
    problems += [
        f"{one.request_id} is {outcomes[one.request_id]} in the journal and {one.verdict} at the client"
        for one in received
        if one.request_id in outcomes and outcomes[one.request_id] not in OUTCOMES[one.verdict]
    ]
    problems += [f"{count} records of {name}" for name, count in counts.items() if count > 1]
    surplus = len(counts.keys() - {one.request_id for one in received})
    if surplus > len(unfinished):
        problems.append(f"{surplus} records without an answer, but only {len(unfinished)} requests did not end")
    if unreadable:
        problems.append(f"{unreadable} unreadable lines")
    return JournalCheck(len(received), len(records), surplus, len(unfinished), unreadable, tuple(problems))


def _records(folder: Path) -> tuple[list[RequestRecord], int]:
    found: list[RequestRecord] = []
    unreadable, checkpoint = 0, BEGINNING
    while True:
        step = read_journal(folder, checkpoint)
        found += step.records
        unreadable, checkpoint = unreadable + step.unreadable, step.checkpoint
        if not step.more:
            return found, unreadable
