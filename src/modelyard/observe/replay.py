"""Recorded decisions, decided again: the same inputs must lead to the same choice, and other inputs show what if."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from modelyard.gateway.balance import choose
from modelyard.gateway.entry import admit
from modelyard.records.base import Record
from modelyard.records.decision import Admitted, Decision
from modelyard.records.journal import RequestRecord


class Differing(Record, kw_only=True):
    """A choice that comes out another way now."""

    request_id: str
    recorded: Decision
    now: Decision


class DifferingEntry(Record, kw_only=True):
    """A request that would now be let in, or refused, in another way."""

    request_id: str
    recorded: Admitted
    now: Admitted


@dataclass(slots=True)
class Replayed:
    """`differing` holds the first of those choices that differ; `differ` counts all of them. `unseated` are those of
    them that find no replica at all now. The same of what the door decided, where no seat was free, in `entries`."""

    entries: int = 0
    entries_differ: int = 0
    differing_entries: list[DifferingEntry] = field(default_factory=list[DifferingEntry])
    decisions: int = 0
    same: int = 0
    differ: int = 0
    unseated: int = 0
    differing: list[Differing] = field(default_factory=list[Differing])


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Other inputs than the recorded ones: each replica with this cap, and without these replicas."""

    cap: int | None = None
    without: frozenset[str] = frozenset()

    def changes(self, decision: Decision) -> Decision:
        """The decision as it would have been recorded, its choice still the old one."""
        candidates = tuple(
            one if self.cap is None else replace(one, max_in_flight=self.cap)
            for one in decision.candidates
            if one.replica not in self.without
        )
        return replace(decision, candidates=candidates)


AS_IT_WAS = WhatIf()
MOST_SHOWN = 20


def replay(records: Iterable[RequestRecord], what_if: WhatIf = AS_IT_WAS) -> Replayed:
    """Decide each recorded choice again. With other inputs only the choice is compared, not how it is explained."""
    found = Replayed()
    for record in records:
        if record.admitted is not None and what_if is AS_IT_WAS:
            _enter_again(record.request_id, record.admitted, found)
        recorded = record.decision
        if recorded is None:
            continue
        found.decisions += 1
        inputs = recorded if what_if is AS_IT_WAS else what_if.changes(recorded)
        now = choose(inputs.candidates, inputs.tie_break)
        if now == recorded or (what_if is not AS_IT_WAS and now.replica == recorded.replica):
            found.same += 1
            continue
        found.differ += 1
        found.unseated += now.replica is None
        if len(found.differing) < MOST_SHOWN:
            found.differing.append(Differing(request_id=record.request_id, recorded=recorded, now=now))
    return found


def _enter_again(request_id: str, recorded: Admitted, found: Replayed) -> None:
    found.entries += 1
    now = admit(recorded.entry)
    if now != recorded:
        found.entries_differ += 1
        if len(found.differing_entries) < MOST_SHOWN:
            found.differing_entries.append(DifferingEntry(request_id=request_id, recorded=recorded, now=now))


def sampled(records: Iterable[RequestRecord], count: int, seed: int = 0) -> Iterator[RequestRecord]:
    """`count` of them, each as likely as any other, in their order; the same ones for the same seed (Vitter's
    algorithm R)."""
    chosen, dice = list[tuple[int, RequestRecord]](), random.Random(seed)
    for number, record in enumerate(records):
        if number < count:
            chosen.append((number, record))
        elif (at := dice.randrange(number + 1)) < count:
            chosen[at] = (number, record)
    return (record for _, record in sorted(chosen, key=lambda one: one[0]))
