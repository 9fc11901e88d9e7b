"""Records of requests as the gateway writes them, for tests of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.records.base import encode
from modelyard.records.decision import Candidate, Decision
from modelyard.records.journal import RequestRecord


def choice(*in_flight: int, cap: int = 4, tie_break: int = 0, took: str = "small-0") -> Decision:
    """A choice between replicas with so many requests in flight."""
    candidates = tuple(
        Candidate(replica=f"small-{number}", in_flight=count, max_in_flight=cap)
        for number, count in enumerate(in_flight)
    )
    reason = "only replica" if len(candidates) == 1 else "least in flight"
    return Decision(replica=took, reason=reason, candidates=candidates, tie_break=tie_break)


def answered(number: int = 1, worker: str = "0a1b2c3d", **changes: Any) -> RequestRecord:
    """A complete stream of 2 s; the client's request number `number` of that worker."""
    values: dict[str, Any] = {
        "request_id": f"req_{worker}{number:08x}",
        "worker": worker,
        "sequence": number,
        "at": 1_700_000_000.0 + number,
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "outcome": "complete",
        "deployment": "small",
        "key_id": "0123456789ab",
        "stream": True,
        "queued_s": 0.25,
        "first_byte_s": 0.5,
        "total_s": 2.0,
        "bytes_in": 800,
        "bytes_out": 4000,
        "attempts": 1,
        "replica": "small-0",
        "launch": "l-0",
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 7,
        "usage_source": "engine",
        "decision": choice(0, 1),
    }
    return RequestRecord(**(values | changes))


def write(folder: Path, *records: RequestRecord) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in records:
        with (folder / f"gateway-{one.worker}.ndjson").open("ab") as file:
            file.write(encode(one) + b"\n")
