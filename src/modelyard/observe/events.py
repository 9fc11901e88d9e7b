"""Events as projections of the journal: each kind shows of a request what its reader needs, and nothing is kept twice.

None of them can hold a prompt or an answer: the journal has none."""

from __future__ import annotations

from typing import Literal

from modelyard.observe.backwards import ended_at
from modelyard.observe.operations import error_type
from modelyard.records.base import Record
from modelyard.records.journal import Outcome, RequestRecord, UsageSource

Kind = Literal["access", "error", "performance"]
KINDS: tuple[Kind, ...] = ("access", "error", "performance")


class AccessEvent(Record, tag_field="event", tag="access", kw_only=True):
    """Who asked for what, and what they were told. `at` is when the answer ended: Unix seconds."""

    at: float
    request_id: str
    key_id: str
    endpoint: str
    status: int
    outcome: Outcome
    deployment: str
    replica: str
    total_s: float
    bytes_in: int
    bytes_out: int
    trace_id: str = ""


class ErrorEvent(Record, tag_field="event", tag="error", kw_only=True):
    """Something that went wrong: the request, or one sending of it that another one made good (`recovered`)."""

    at: float
    request_id: str
    error: str
    cause: str
    status: int
    deployment: str
    replica: str
    recovered: bool = False
    trace_id: str = ""


class PerformanceEvent(Record, tag_field="event", tag="performance", kw_only=True):
    """Where the time of an answered request went. `tokens_per_s` counts from the first token; None where no stream
    shows it."""

    at: float
    request_id: str
    deployment: str
    replica: str
    queued_s: float
    first_token_s: float | None
    total_s: float
    tokens_per_s: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    counted_by: UsageSource
    sendings: int


Event = AccessEvent | ErrorEvent | PerformanceEvent


def events_of(record: RequestRecord, kind: Kind) -> tuple[Event, ...]:
    """What a record says to readers of that kind; often nothing."""
    match kind:
        case "access":
            return (_access(record),)
        case "error":
            return _errors(record)
        case "performance":
            return (_performance(record),) if record.outcome == "complete" and record.attempts else ()


def _access(record: RequestRecord) -> AccessEvent:
    return AccessEvent(
        at=ended_at(record),
        request_id=record.request_id,
        key_id=record.key_id,
        endpoint=record.endpoint,
        status=record.status,
        outcome=record.outcome,
        deployment=record.deployment,
        replica=record.replica,
        total_s=record.total_s,
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
        trace_id=record.trace_id,
    )


def _errors(record: RequestRecord) -> tuple[Event, ...]:
    recovered = record.outcome == "complete"
    found: list[Event] = [
        ErrorEvent(
            at=record.at + tried.ended_s,
            request_id=record.request_id,
            error=f"attempt_{tried.kind}",
            cause=tried.cause,
            status=record.status,
            deployment=record.deployment,
            replica=tried.replica,
            recovered=recovered,
            trace_id=record.trace_id,
        )
        for tried in record.tried
        if tried.failed
    ]
    if not recovered:
        found.append(
            ErrorEvent(
                at=ended_at(record),
                request_id=record.request_id,
                error=error_type(record),
                cause=record.error,
                status=record.status,
                deployment=record.deployment,
                replica=record.replica,
                trace_id=record.trace_id,
            )
        )
    return tuple(found)


def _performance(record: RequestRecord) -> PerformanceEvent:
    rest_s = record.total_s - record.first_byte_s
    streamed = record.stream and record.first_byte_s > 0
    rate = (record.completion_tokens - 1) / rest_s if streamed and record.completion_tokens > 1 and rest_s > 0 else None
    return PerformanceEvent(
        at=ended_at(record),
        request_id=record.request_id,
        deployment=record.deployment,
        replica=record.replica,
        queued_s=record.queued_s,
        first_token_s=record.first_byte_s if streamed else None,
        total_s=record.total_s,
        tokens_per_s=rate,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        completion_tokens=record.completion_tokens,
        counted_by=record.usage_source,
        sendings=record.attempts,
    )
