"""The whole story of a request, told from its record: what was asked, checked, chosen and tried, and what it cost."""

from __future__ import annotations

from modelyard.observe.advice import advice
from modelyard.records.base import Record
from modelyard.records.decision import Admitted, Candidate, Decision
from modelyard.records.journal import RequestRecord

PICO = 10**12


class Chapter(Record, kw_only=True):
    """`at_s` counts from the request's first byte; None for what has no moment of its own."""

    at_s: float | None
    text: str


class Story(Record, kw_only=True):
    """`summary` in one line, the chapters in order, and what to do where something went wrong."""

    request_id: str
    summary: str
    chapters: tuple[Chapter, ...]
    advice: str
    record: RequestRecord


def tell(record: RequestRecord, key_name: str = "") -> Story:
    """`key_name` is what the key is called, where its log still knows it."""
    return Story(
        request_id=record.request_id,
        summary=f"{record.status}, {_OUTCOMES[record.outcome]}, after {record.total_s:.3f} s",
        chapters=(
            *_arrival(record, key_name),
            *_admission(record),
            *_choice(record.decision),
            *_attempts(record),
            *_answer(record),
            *_account(record),
        ),
        advice=advice(record),
        record=record,
    )


_OUTCOMES = {
    "complete": "complete",
    "refused": "refused",
    "unavailable": "turned away",
    "client_gone": "the client left",
    "upstream_failed": "the engine failed",
    "truncated": "cut short, and said so",
    "gateway_stopped": "the gateway was stopped",
}


def _arrival(record: RequestRecord, key_name: str) -> list[Chapter]:
    key = f"key {record.key_id}" + (f" ({key_name})" if key_name else "") if record.key_id else "no key"
    text = f"{record.endpoint} with {_bytes(record.bytes_in)}, {key}"
    if record.trace_id:
        text += f", trace {record.trace_id}"
    return [Chapter(at_s=0.0, text=text)]


def _admission(record: RequestRecord) -> list[Chapter]:
    asked = f"asked for {record.deployment}" + (", as a stream" if record.stream else "")
    if not record.deployment:
        return [Chapter(at_s=None, text=f"refused before a deployment was known: {record.error or record.status}")]
    if record.decision is None and not record.attempts:
        why = f"{asked}; no seat: {record.error or record.outcome}{_door(record.admitted)}"
        return [Chapter(at_s=record.total_s, text=why)]
    waited = "a seat at once" if record.queued_s < 0.001 else f"a seat after {record.queued_s:.3f} s in the queue"
    return [Chapter(at_s=record.queued_s, text=f"{asked}; within every limit; {waited}{_door(record.admitted)}")]


def _door(admitted: Admitted | None) -> str:
    """What the door saw, where no seat was free."""
    if admitted is None:
        return ""
    entry = admitted.entry
    return (
        f" (the door: {admitted.reason}; {entry.waiting} waited, {entry.ahead} of them ahead, for {entry.seats} seats;"
        f" expected {admitted.expected_s:.1f} s)"
    )


def _choice(decision: Decision | None) -> list[Chapter]:
    if decision is None:
        return []
    seen = ", ".join(_seen(one) for one in decision.candidates)
    return [
        Chapter(at_s=None, text=f"saw {seen or 'no replica'} in flight; took {decision.replica}: {decision.reason}")
    ]


def _seen(one: Candidate) -> str:
    return f"{one.replica} {one.in_flight}/{one.max_in_flight}" + (f" ({one.barred})" if one.barred else "")


def _attempts(record: RequestRecord) -> list[Chapter]:
    kinds = {
        "refused": "took no connection",
        "failed": "failed",
        "late": "was late",
        "hedge_lost": "was slower than the other one",
        "outrun": "was outrun by one that was asked later",
    }
    return [
        Chapter(
            at_s=tried.ended_s,
            text=f"{tried.replica} ({tried.launch}) {kinds[tried.kind]}, asked at {tried.began_s:.3f} s"
            + (f": {tried.cause}" if tried.cause else ""),
        )
        for tried in record.tried
    ]


def _answer(record: RequestRecord) -> list[Chapter]:
    found: list[Chapter] = []
    if record.resumed:
        times = "once" if record.resumed == 1 else f"{record.resumed} times"
        found.append(Chapter(at_s=None, text=f"went on at another replica in the middle of the answer, {times}"))
    if record.first_byte_s and record.stream:
        found.append(Chapter(at_s=record.first_byte_s, text=f"first token, from {_engine(record)}"))
    text = f"{_OUTCOMES[record.outcome]}, {_bytes(record.bytes_out)} to the client"
    if not record.stream and record.replica:
        text += f", from {_engine(record)}"
    if record.error:
        text += f": {record.error}"
    found.append(Chapter(at_s=record.total_s, text=text))
    return found


def _engine(record: RequestRecord) -> str:
    sendings = f", sending {record.attempts}" if record.attempts > 1 else ""
    return f"{record.replica} ({record.launch}{sendings})"


def _account(record: RequestRecord) -> list[Chapter]:
    if record.usage_source == "none":
        return []
    who = "the engine" if record.usage_source == "engine" else "us, by the pieces of the stream"
    text = (
        f"{record.prompt_tokens} prompt tokens ({record.cached_tokens} of them cached) and "
        f"{record.completion_tokens} of the answer, counted by {who}"
    )
    rest_s = record.total_s - record.first_byte_s
    if record.stream and record.first_byte_s and record.completion_tokens > 1 and rest_s > 0:
        text += f"; {(record.completion_tokens - 1) / rest_s:.1f} tokens/s after the first"
    if record.cost_pico:
        text += f"; cost {_money(record.cost_pico)}"
    return [Chapter(at_s=None, text=text)]


def _money(picos: int) -> str:
    whole, rest = divmod(picos, PICO)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")


def _bytes(count: int) -> str:
    return f"{count:,} bytes"
