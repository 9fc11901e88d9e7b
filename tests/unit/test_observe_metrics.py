"""The projection to Prometheus metrics: right totals, however the journal was read; absent stays absent."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from modelyard.engines.contract import EngineMetrics
from modelyard.observe.instruments import BY_FAMILY, INSTRUMENTS, SERVER_DURATION, TOKEN_USAGE
from modelyard.observe.journal import BEGINNING, read_journal
from modelyard.observe.metrics import Metrics
from modelyard.records.base import encode
from modelyard.records.decision import Candidate, Decision
from modelyard.records.journal import Attempt, Outcome, RequestRecord

OUTCOMES: tuple[Outcome, ...] = ("complete", "refused", "client_gone", "truncated")


def record(sequence: int = 1, worker: str = "w1", **changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "request_id": f"{worker}-{sequence}",
        "worker": worker,
        "sequence": sequence,
        "at": 1000.0,
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "outcome": "complete",
        "deployment": "small",
        "replica": "small-0",
        "queued_s": 0.25,
        "first_byte_s": 0.5,
        "total_s": 2.0,
        "attempts": 1,
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 7,
        "usage_source": "engine",
    }
    return RequestRecord(**(values | changes))


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_a_finished_request_is_counted_timed_and_metered() -> None:
    metrics = Metrics()
    metrics.count([record()])
    who = {"deployment": "small", "replica": "small-0", "code": "200", "outcome": "complete"}
    assert value(metrics, "modelyard_requests_total", **who) == 1
    assert value(metrics, "modelyard_request_queue_seconds_sum", deployment="small") == 0.25
    for kind, tokens in (("prompt", 10), ("cached_prompt", 4), ("completion", 7)):
        name = f"modelyard_{kind}_tokens_total"
        assert value(metrics, name, deployment="small", source="engine") == tokens


def test_what_a_request_never_reached_is_not_timed_as_zero() -> None:
    metrics = Metrics()
    metrics.count(
        [record(status=401, outcome="refused", first_byte_s=0.0, queued_s=0.0, attempts=0, usage_source="none")]
    )
    names = {name for name, _ in samples(metrics)}
    assert "gen_ai_server_request_duration_seconds_count" in names
    assert not any("first_token" in name or "queue" in name or "token" in name for name in names)
    assert "gen_ai_client_operation_duration_seconds_count" not in names


OPERATION = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "modelyard",
    "gen_ai_request_model": "small",
}


def test_a_stream_is_measured_as_the_conventions_for_generative_ai_say() -> None:
    metrics = Metrics()
    metrics.count([record(stream=True)])
    seen = samples(metrics)

    def of(name: str, **labels: str) -> float | None:
        return seen.get((name, tuple(sorted((OPERATION | labels).items()))))

    assert of("gen_ai_server_request_duration_seconds_sum", error_type="") == 2.0
    assert of("gen_ai_client_operation_duration_seconds_sum", error_type="") == 1.75
    assert of("gen_ai_server_time_to_first_token_seconds_sum") == 0.5
    assert of("gen_ai_server_time_per_output_token_seconds_sum") == 0.25
    assert of("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 10
    assert of("gen_ai_client_token_usage_bucket", gen_ai_token_type="output", le="4.0") == 0
    assert of("gen_ai_client_token_usage_bucket", gen_ai_token_type="output", le="16.0") == 1


def test_of_a_plain_answer_nobody_claims_to_know_the_first_token() -> None:
    metrics = Metrics()
    metrics.count([record()])
    assert not any("first_token" in name or "output_token" in name for name, _ in samples(metrics))


def test_a_failure_bears_the_code_that_the_client_was_told_never_a_text() -> None:
    metrics = Metrics()
    metrics.count([record(1, status=503, outcome="upstream_failed", error="engine_unavailable")])
    metrics.count([record(2, outcome="truncated", error="the engine closed the connection")])
    for kind in ("engine_unavailable", "truncated"):
        assert value(metrics, "gen_ai_server_request_duration_seconds_count", **OPERATION, error_type=kind) == 1


def test_a_listing_is_no_operation_of_a_model() -> None:
    metrics = Metrics()
    metrics.count([record(endpoint="/v1/models", deployment="", attempts=0, usage_source="none")])
    assert not any(name.startswith("gen_ai_") for name, _ in samples(metrics))


def test_refusals_retries_resumptions_and_money_are_counted() -> None:
    metrics = Metrics()
    tried = Attempt(replica="small-1", launch="l", began_s=0.1, ended_s=0.2, kind="failed", cause="it closed")
    metrics.count([record(1, status=429, outcome="refused", error="rate_limited", attempts=0)])
    metrics.count([record(2, tried=(tried, tried), resumed=1, cost_pico=1), record(3, cost_pico=2 * 10**12)])
    assert value(metrics, "modelyard_refusals_total", deployment="small", reason="rate_limited") == 1
    assert value(metrics, "modelyard_retries_total", deployment="small", replica="small-1", kind="failed") == 2
    assert value(metrics, "modelyard_resumptions_total", deployment="small") == 1
    assert value(metrics, "modelyard_cost_total", deployment="small") == 2.000000000001


def test_every_instrument_is_offered_under_the_name_that_its_own_follows_from() -> None:
    assert SERVER_DURATION.family == "gen_ai_server_request_duration_seconds"
    assert TOKEN_USAGE.family == "gen_ai_client_token_usage"
    assert len(BY_FAMILY) == len(INSTRUMENTS)
    metrics = Metrics()
    metrics.set_replica("small", "small-0", "ready", EngineMetrics())
    registered = {family.name for family in metrics.registry.collect()}
    assert registered == set(BY_FAMILY)


def test_estimated_tokens_are_kept_apart_from_the_engines_own() -> None:
    metrics = Metrics()
    metrics.count([record(1), record(2, usage_source="estimated", completion_tokens=3)])
    assert value(metrics, "modelyard_completion_tokens_total", deployment="small", source="engine") == 7
    assert value(metrics, "modelyard_completion_tokens_total", deployment="small", source="estimated") == 3


def test_what_an_engine_does_not_report_is_absent_not_zero() -> None:
    metrics = Metrics()
    metrics.set_replica("small", "small-0", "ready", EngineMetrics(running=2.0, kv_used_ratio=0.0))
    who = {"deployment": "small", "replica": "small-0"}
    assert value(metrics, "modelyard_engine_running_requests", **who) == 2
    assert value(metrics, "modelyard_engine_kv_used_ratio", **who) == 0
    assert value(metrics, "modelyard_engine_waiting_requests", **who) is None
    assert value(metrics, "modelyard_replica_state", state="ready", **who) == 1
    metrics.set_replica("small", "small-0", "backoff", None)
    assert value(metrics, "modelyard_engine_running_requests", **who) is None
    assert value(metrics, "modelyard_replica_state", state="ready", **who) is None
    assert value(metrics, "modelyard_replica_state", state="backoff", **who) == 1
    metrics.forget_replica("small", "small-0")
    assert value(metrics, "modelyard_replica_state", state="backoff", **who) is None


def test_how_many_seats_a_replica_has_is_what_the_latest_choice_saw() -> None:
    def chosen(limit: int) -> Decision:
        return Decision(replica="small-0", reason="only replica", candidates=(Candidate("small-0", 1, limit),))

    metrics = Metrics()
    who = {"deployment": "small", "replica": "small-0"}
    metrics.count([record(1, decision=chosen(16))])
    assert value(metrics, "modelyard_replica_seats", **who) is None, "nobody knows whether it is still there"
    metrics.set_replica("small", "small-0", "ready", None)
    # The one that was chosen first ends last.
    metrics.count([record(2, at=1010.0, decision=chosen(11)), record(3, at=1005.0, decision=chosen(16)), record(4)])
    assert value(metrics, "modelyard_replica_seats", **who) == 11
    metrics.forget_replica("small", "small-0")
    assert value(metrics, "modelyard_replica_seats", **who) is None


def test_names_that_somebody_makes_up_do_not_grow_the_exposition_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelyard.observe.metrics.MAX_VALUES_PER_LABEL", 20)
    metrics = Metrics()
    metrics.count(record(number, deployment=f"d{number}", replica="") for number in range(70))
    deployments = {dict(labels).get("deployment") for name, labels in samples(metrics) if "requests_total" in name}
    assert len(deployments) == 21
    who = {"deployment": "other", "replica": "", "code": "200", "outcome": "complete"}
    assert value(metrics, "modelyard_requests_total", **who) == 50


def test_unreadable_lines_are_counted() -> None:
    metrics = Metrics()
    metrics.count_unreadable(3)
    assert value(metrics, "modelyard_journal_unreadable_lines_total") == 3


def test_two_projections_do_not_share_a_registry() -> None:
    first, second = Metrics(), Metrics()
    first.count([record()])
    assert first.render() != second.render()


@st.composite
def journals(draw: st.DrawFn) -> list[RequestRecord]:
    """Records of a few workers; times are binary fractions so that sums do not depend on their order."""
    drawn = st.tuples(st.sampled_from(("w1", "w2", "w3")), st.sampled_from(OUTCOMES), st.integers(0, 40))
    made = draw(st.lists(drawn, max_size=15))
    return [
        record(number, worker, outcome=outcome, total_s=quarters / 4, completion_tokens=quarters)
        for number, (worker, outcome, quarters) in enumerate(made)
    ]


@settings(deadline=None, max_examples=40)
@given(journals(), st.data())
def test_totals_do_not_depend_on_where_reading_stopped_or_what_was_read_twice(
    records: list[RequestRecord], data: st.DataObject
) -> None:
    at_once = Metrics()
    at_once.count(records)
    in_steps, checkpoint, left = Metrics(), BEGINNING, list(records)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while True:
            written = data.draw(st.integers(min(1, len(left)), len(left)), label="written before this step")
            for one in left[:written]:
                with (folder / f"gateway-{one.worker}.ndjson").open("ab") as file:
                    file.write(encode(one) + b"\n")
            left = left[written:]
            step = read_journal(folder, checkpoint, step_bytes=data.draw(st.integers(600, 3000), label="step bytes"))
            in_steps.count(step.records)
            crashed = data.draw(st.booleans(), label="crashed before the checkpoint") and bool(step.records)
            checkpoint = checkpoint if crashed else step.checkpoint
            if not (left or step.more or crashed):
                break
    assert samples(in_steps) == samples(at_once)
