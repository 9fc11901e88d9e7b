"""The last minute, from the newest records of a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.observe import recent
from modelyard.observe.recent import recent_traffic, summarise
from modelyard.records.base import encode
from modelyard.records.journal import RequestRecord

NOW = 1_000_000.0


def record(ago_s: float, *, sequence: int = 0, total_s: float = 0.0, **fields: Any) -> RequestRecord:
    """A request that ended `ago_s` before NOW."""
    chosen = {"outcome": "complete", "deployment": "small", "status": 200, **fields}
    return RequestRecord(
        request_id=f"r{sequence}",
        worker="w",
        sequence=sequence,
        at=NOW - ago_s - total_s,
        total_s=total_s,
        endpoint="/v1/chat/completions",
        **chosen,
    )


def test_only_what_ended_within_the_minute_counts() -> None:
    [traffic] = summarise([record(59), record(61), record(1, total_s=600), record(0)], NOW)
    assert (traffic.deployment, traffic.requests, traffic.covered_s) == ("small", 3, 60.0)


def test_failures_of_ours_are_told_from_the_clients_and_from_those_who_left() -> None:
    outcomes = ("complete", "refused", "client_gone", "upstream_failed", "truncated", "unavailable", "gateway_stopped")
    [traffic] = summarise([record(1, outcome=outcome) for outcome in outcomes], NOW)
    assert (traffic.requests, traffic.failed, traffic.refused) == (7, 4, 1)


def test_tokens_are_per_second_of_the_window() -> None:
    [traffic] = summarise([record(1, completion_tokens=60), record(2, completion_tokens=120)], NOW)
    assert traffic.tokens_per_s == 3.0


def test_each_deployment_has_its_own() -> None:
    found = summarise([record(1), record(1, deployment="other"), record(1, deployment="")], NOW)
    assert [(one.deployment, one.requests) for one in found] == [("other", 1), ("small", 1)]


def test_a_tail_that_does_not_reach_back_says_how_far_it_does() -> None:
    [traffic] = summarise([record(10), record(5)], NOW, whole=False)
    assert traffic.covered_s == 10.0
    assert summarise([], NOW, whole=False) == ()


def test_it_is_read_from_the_end_of_large_journals(tmp_path: Path, monkeypatch: Any) -> None:
    lines = [encode(record(30 - number / 10, sequence=number)) + b"\n" for number in range(300)]
    (tmp_path / "w.ndjson").write_bytes(b"".join(lines))
    [whole] = recent_traffic(tmp_path, NOW)
    assert (whole.requests, whole.covered_s) == (300, 60.0)
    monkeypatch.setattr(recent, "TAIL_BYTES", len(lines[0]) * 10)
    [tail] = recent_traffic(tmp_path, NOW)
    assert 8 <= tail.requests <= 11 and tail.covered_s < 2


def test_no_journal_is_no_traffic(tmp_path: Path) -> None:
    assert recent_traffic(tmp_path, NOW) == ()
