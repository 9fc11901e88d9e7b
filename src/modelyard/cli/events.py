"""`modelyard logs --events`: what happened, from the journal and the audit log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import islice

import msgspec

from modelyard.cli.admin import listening
from modelyard.cli.output import say, say_line
from modelyard.observe.audit import entries
from modelyard.observe.backwards import newest
from modelyard.observe.events import AccessEvent, ErrorEvent, Event, PerformanceEvent, events_of
from modelyard.observe.journal import Checkpoint, read_journal
from modelyard.records.audit import AuditEntry
from modelyard.state import StateDirectory

LOOK_EVERY_S = 0.2
# A journal may hold none of the kind that is asked for.
MOST_LOOKED_AT = 1_000_000

Shown = Event | AuditEntry


class EventKind(StrEnum):
    """What `--events` takes."""

    ACCESS = "access"
    ERROR = "error"
    PERFORMANCE = "performance"
    AUDIT = "audit"


def show_events(state: StateDirectory, kind: EventKind, lines: int, *, follow: bool, as_json: bool) -> None:
    """The last `lines` events, the newest last, and those that come until interrupted where `follow`."""
    checkpoint = _end(state)
    seen = entries(state.audit) if kind is EventKind.AUDIT else ()
    for event in _last(state, kind, lines):
        _print(event, as_json)
    while follow and listening(state) is not None:
        time.sleep(LOOK_EVERY_S)
        if kind is EventKind.AUDIT:
            known, seen = len(seen), entries(state.audit)
            found: Iterator[Shown] = iter(seen[known:])
        else:
            step = read_journal(state.journal, checkpoint)
            checkpoint = step.checkpoint
            found = (event for record in step.records for event in events_of(record, kind.value))
        for event in found:
            _print(event, as_json)


def _last(state: StateDirectory, kind: EventKind, lines: int) -> Sequence[Shown]:
    if kind is EventKind.AUDIT:
        return entries(state.audit)[-lines:]
    records = islice(newest(state.journal), MOST_LOOKED_AT)
    backwards = (event for record in records for event in reversed(events_of(record, kind.value)))
    return list(islice(backwards, lines))[::-1]


def _end(state: StateDirectory) -> Checkpoint:
    """Where each journal ends now."""
    return Checkpoint(offsets={path.name: path.stat().st_size for path in state.journal.glob("*.ndjson")})


def _print(event: Shown, as_json: bool) -> None:
    if as_json:
        # A line for each, so that it can be followed and piped.
        say_line(msgspec.json.encode(event).decode())
    else:
        say(_TEXTS[type(event)](event))


def _access(event: AccessEvent) -> str:
    who = event.key_id or "-"
    where = f"{event.deployment or '-'} {event.replica or '-'}"
    return (
        f"{_clock(event.at)}  {event.status} {event.outcome}  {event.endpoint}  {where}  key {who}  "
        f"{event.total_s:.3f} s  {event.bytes_in}/{event.bytes_out} bytes  {event.request_id}"
    )


def _error(event: ErrorEvent) -> str:
    where = f"{event.deployment or '-'} {event.replica or '-'}"
    cause = f": {event.cause}" if event.cause and event.cause != event.error else ""
    made_good = "  (made good by another sending)" if event.recovered else ""
    return f"{_clock(event.at)}  {event.status} {event.error}{cause}  {where}  {event.request_id}{made_good}"


def _performance(event: PerformanceEvent) -> str:
    first = "-" if event.first_token_s is None else f"{event.first_token_s:.3f} s"
    rate = "-" if event.tokens_per_s is None else f"{event.tokens_per_s:.1f} tok/s"
    return (
        f"{_clock(event.at)}  {event.deployment} {event.replica}  queue {event.queued_s:.3f} s  first token {first}  "
        f"total {event.total_s:.3f} s  {rate}  {event.prompt_tokens} ({event.cached_tokens} cached) + "
        f"{event.completion_tokens} tokens  {event.request_id}"
    )


def _audit(event: AuditEntry) -> str:
    details = "".join(f"  {name} {value}" for name, value in event.details.items())
    return f"{_clock(event.at)}  {event.action}  {event.subject}  by {event.by}{details}"


_TEXTS: dict[type, Callable[..., str]] = {
    AccessEvent: _access,
    ErrorEvent: _error,
    PerformanceEvent: _performance,
    AuditEntry: _audit,
}


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
