"""Spans and metrics in OTLP's JSON: ids, parents, enums and 64-bit numbers as the protocol has them."""

from __future__ import annotations

import json
from typing import Any

from journal_records import answered
from modelyard.observe.metrics import Metrics
from modelyard.observe.otlp import metrics, traces
from modelyard.records.journal import Attempt

RESOURCE = {"service.name": "modelyard"}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRIED = Attempt(replica="small-1", launch="l-1", began_s=0.3, ended_s=0.4, kind="failed", cause="closed")


def spans(*records: Any) -> list[dict[str, Any]]:
    (resource,) = json.loads(traces(records, RESOURCE))["resourceSpans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "modelyard"}}]
    return resource["scopeSpans"][0]["spans"]


def of(span: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


def test_a_request_is_a_span_in_its_callers_trace_and_each_sending_one_below_it() -> None:
    server, failed, sent = spans(answered(trace_id=TRACE, trace_parent=f"{PARENT}-01", tried=(TRIED,)))
    assert {one["traceId"] for one in (server, failed, sent)} == {TRACE}
    assert (server["spanId"], server["parentSpanId"], server["kind"]) == ("0a1b2c3d00000001", PARENT, 2)
    assert {failed["parentSpanId"], sent["parentSpanId"]} == {server["spanId"]} and failed["spanId"] != sent["spanId"]
    assert server["name"] == "chat small" and of(server)["gen_ai.usage.input_tokens"] == "10"
    assert int(server["endTimeUnixNano"]) - int(server["startTimeUnixNano"]) == 2_000_000_000
    assert failed["status"] == {"code": 2} and "status" not in sent and "status" not in server


def test_a_request_without_a_trace_has_one_of_its_own_always_the_same() -> None:
    first, again = spans(answered())[0], spans(answered())[0]
    assert first["traceId"] == again["traceId"] and len(first["traceId"]) == 32 and "parentSpanId" not in first
    assert spans(answered(2))[0]["traceId"] != first["traceId"]


def test_what_the_caller_does_not_record_and_what_is_no_operation_is_not_exported() -> None:
    assert spans(answered(trace_id=TRACE, trace_parent=f"{PARENT}-00"), answered(endpoint="/v1/models")) == []


def test_metrics_bear_opentelemetrys_names_and_buckets_of_their_own() -> None:
    shown = Metrics()
    shown.count([answered(1), answered(2, total_s=0.015, queued_s=0.0, first_byte_s=0.01)])
    (resource,) = json.loads(metrics(shown.registry, shown.since, 1_700_000_100.0, RESOURCE))["resourceMetrics"]
    found = {one["name"]: one for one in resource["scopeMetrics"][0]["metrics"]}
    (point,) = found["gen_ai.server.request.duration"]["histogram"]["dataPoints"]
    assert point["count"] == "2" and sum(map(int, point["bucketCounts"])) == 2
    assert len(point["bucketCounts"]) == len(point["explicitBounds"]) + 1
    assert [number for number, count in enumerate(point["bucketCounts"]) if count != "0"] == [1, 8]
    assert of(point) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "modelyard",
        "gen_ai.request.model": "small",
    }
    (requests,) = found["modelyard.requests"]["sum"]["dataPoints"]
    assert requests["asDouble"] == 2.0 and requests["startTimeUnixNano"] == "1700000001000000000"
    assert found["modelyard.requests"]["sum"]["isMonotonic"] is True
