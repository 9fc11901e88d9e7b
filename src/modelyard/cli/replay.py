"""`modelyard replay`: recorded decisions, decided again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.admin import state_directory
from modelyard.cli.durations import seconds
from modelyard.cli.options import Json
from modelyard.cli.output import print_json, say
from modelyard.errors import UsageError
from modelyard.observe.journal import BEGINNING, read_journal, record_of
from modelyard.observe.replay import AS_IT_WAS, Differing, DifferingEntry, Replayed, WhatIf, sampled
from modelyard.observe.replay import replay as decide_again
from modelyard.records.base import Record
from modelyard.records.decision import Decision
from modelyard.records.journal import RequestRecord


class ReplayReport(Record, kw_only=True):
    """What `replay --json` prints. `differing` shows the first of the `differ`."""

    decisions: int
    same: int
    differ: int
    unseated: int
    differing: tuple[Differing, ...]
    entries: int = 0
    entries_differ: int = 0
    differing_entries: tuple[DifferingEntry, ...] = ()


def replay(
    file: Annotated[
        Path | None, typer.Argument(help="One journal file; all of this installation's if left out.")
    ] = None,
    since: Annotated[str, typer.Option(help="Only requests that began within this time, such as 1h.")] = "",
    sample: Annotated[int, typer.Option(min=0, help="At most so many of them, picked by chance; 0 takes all.")] = 0,
    what_if: Annotated[
        list[str] | None,
        typer.Option("--what-if", help="Other inputs: cap=8 for each replica's cap, without=REPLICA. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Decide every recorded choice again. Exit code 1 where one comes out another way.

    With --what-if other inputs are tried, and a difference is an answer, not a failure."""
    asked = _what_if(what_if or [])
    records = _records(file)
    if since:
        oldest = time.time() - seconds(since)
        records = (record for record in records if record.at >= oldest)
    if sample:
        records = sampled((record for record in records if record.decision or record.admitted), sample)
    found = decide_again(records, asked)
    if json:
        print_json(
            ReplayReport(
                decisions=found.decisions,
                same=found.same,
                differ=found.differ,
                unseated=found.unseated,
                differing=tuple(found.differing),
                entries=found.entries,
                entries_differ=found.entries_differ,
                differing_entries=tuple(found.differing_entries),
            )
        )
    else:
        _show(found, asked)
    if (found.differ or found.entries_differ) and asked is AS_IT_WAS:
        raise typer.Exit(1)


def _records(file: Path | None) -> Iterator[RequestRecord]:
    if file is not None:
        yield from _of_file(file)
        return
    folder, checkpoint, more = state_directory().journal, BEGINNING, True
    while more:
        step = read_journal(folder, checkpoint)
        checkpoint, more = step.checkpoint, step.more
        yield from step.records


def _of_file(file: Path) -> Iterator[RequestRecord]:
    try:
        with file.open("rb") as opened:
            for line in opened:
                record = record_of(line)
                if record is not None:
                    yield record
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="name a file of the journal") from None


def _what_if(texts: list[str]) -> WhatIf:
    if not texts:
        return AS_IT_WAS
    cap: int | None = None
    without = set[str]()
    for text in texts:
        name, _, value = text.partition("=")
        if name == "cap" and value.isdigit():
            cap = int(value)
        elif name == "without" and value:
            without.add(value)
        else:
            raise UsageError(f"--what-if {text} is not understood", hint="--what-if cap=8, --what-if without=small-1")
    return WhatIf(cap=cap, without=frozenset(without))


def _show(found: Replayed, asked: WhatIf) -> None:
    verb = "lead" if asked is AS_IT_WAS else "would have led"
    say(f"{found.same:,} of {found.decisions:,} recorded choices {verb} to the same replica")
    if found.unseated:
        say(f"{found.unseated:,} of the others find no free replica")
    for one in found.differing:
        say(f"{one.request_id}: recorded {_said(one.recorded)}; now {_said(one.now)}")
        say(f"    saw {', '.join(f'{c.replica} {c.in_flight}/{c.max_in_flight}' for c in one.now.candidates)}")
    if found.entries:
        same = found.entries - found.entries_differ
        say(f"{same:,} of {found.entries:,} recorded admissions lead to the same verdict")
    for entry in found.differing_entries:
        was, now = entry.recorded, entry.now
        say(f"{entry.request_id}: recorded {was.verdict} ({was.reason}); now {now.verdict} ({now.reason})")
    if found.differ > len(found.differing):
        say(f"... and {found.differ - len(found.differing):,} more")


def _said(decision: Decision) -> str:
    return f"{decision.replica or 'none'} ({decision.reason})"
