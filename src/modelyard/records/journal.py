"""One record per finished request, written before its last bytes leave. Never holds a prompt or an output."""

from __future__ import annotations

from typing import Literal

from modelyard.records.base import Record
from modelyard.records.decision import Admitted, Decision

Outcome = Literal[
    "complete", "refused", "client_gone", "upstream_failed", "truncated", "unavailable", "gateway_stopped"
]
UsageSource = Literal["engine", "estimated", "none"]
AttemptKind = Literal["refused", "failed", "late", "hedge_lost", "outrun"]


# No string inside a JSON text can hold these bytes: its quotes would be escaped.
_STARTS = (b'{"schema":"request/', b'{"schema":"sent/')


def within(line: bytes) -> bytes:
    """The record on a line. A write that a full disk cut short has the next record on its line: that one is whole."""
    return line[max(0, *(line.rfind(start) for start in _STARTS)) :]


class Attempt(Record):
    """One sending of a request to one launch that brought no answer to the client. `began_s` and `ended_s` count from
    the request's first byte; `cause` is ours, never an engine's text. Of two at the same time, the one that was slower
    is "hedge_lost" if it was sent later, "outrun" if earlier."""

    replica: str
    launch: str
    began_s: float
    ended_s: float
    kind: AttemptKind
    cause: str = ""

    @property
    def failed(self) -> bool:
        """Not where another one was only faster."""
        return self.kind not in ("hedge_lost", "outrun")


class RequestRecord(Record, tag_field="schema", tag="request/v1", kw_only=False):
    """Times: `at` is Unix seconds of the first byte; the others are seconds since then (0 where it never came to it).
    `status` is what the client was told. Tokens come from the engine's own count (`usage_source` engine), or from the
    number of relayed events (estimated). `cost_pico` is in millionths of a millionth of the prices' currency.
    `tried` are sendings before (or beside) the one that was answered; `resumed` counts replicas that died in the middle
    of it. `trace_id` and `trace_parent` (span and flags, as `<16 hex>-<2 hex>`) are the caller's trace context, empty
    where it sent none. `worker` and `sequence` name the record; `replica` and `launch` the engine.
    `admitted` is there where no seat was free: let in to wait, or refused.

    The gateway fills it by position, for every request: 24 keywords cost msgspec 1 µs, 24 positions 0.15."""

    request_id: str
    worker: str
    sequence: int
    at: float
    endpoint: str
    status: int
    outcome: Outcome
    deployment: str = ""
    key_id: str = ""
    stream: bool = False
    queued_s: float = 0.0
    first_byte_s: float = 0.0
    total_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    attempts: int = 0
    replica: str = ""
    launch: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usage_source: UsageSource = "none"
    error: str = ""
    decision: Decision | None = None
    cost_pico: int = 0
    trace_id: str = ""
    tried: tuple[Attempt, ...] = ()
    resumed: int = 0
    trace_parent: str = ""
    admitted: Admitted | None = None


class Sent(Record, tag_field="schema", tag="sent/v1"):
    """A line between the records: of every record up to `sequence`, the last bytes were with the kernel (or the client
    was gone) when this was written, at `at` (Unix seconds). Of a gateway that was killed, what stands behind the last
    such line may be an answer whose end never came."""

    worker: str
    sequence: int
    at: float
