"""Spans and metrics as OTLP/HTTP takes them in JSON: projections of the journal, nothing is kept for them.

Encoding: the OpenTelemetry protocol's specification, "JSON Protobuf Encoding": ids in hex, enums as numbers, 64-bit
integers as strings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from modelyard.gateway.trace import span_id
from modelyard.observe.instruments import BY_FAMILY, Instrument
from modelyard.observe.operations import PROVIDER, error_type, operation
from modelyard.records.journal import RequestRecord

SERVER, CLIENT = 2, 3
ERROR = 2
CUMULATIVE = 2
_SCOPE = {"name": "modelyard"}


def trace_id(record: RequestRecord) -> str:
    """The caller's, or one that follows from the request's id where it sent none."""
    return record.trace_id or hashlib.sha256(f"trace {record.request_id}".encode()).hexdigest()[:32]


def is_sampled(record: RequestRecord) -> bool:
    """The caller's word counts; whoever sent none is recorded."""
    flags = record.trace_parent.rpartition("-")[2]
    return not flags or bool(int(flags, 16) & 1)


def traces(records: Iterable[RequestRecord], resource: Mapping[str, str]) -> bytes:
    """An ExportTraceServiceRequest: a span for each operation of a model, and one for each sending to an engine."""
    spans = [span for record in records if operation(record) and is_sampled(record) for span in _spans(record)]
    return msgspec.json.encode(
        {"resourceSpans": [{"resource": _resource(resource), "scopeSpans": [{"scope": _SCOPE, "spans": spans}]}]}
    )


def metrics(registry: CollectorRegistry, since: float, now: float, resource: Mapping[str, str]) -> bytes:
    """An ExportMetricsServiceRequest of everything that `/metrics` shows, cumulative since `since` (Unix seconds)."""
    found = [_metric(family, since, now) for family in registry.collect() if family.samples]
    return msgspec.json.encode(
        {"resourceMetrics": [{"resource": _resource(resource), "scopeMetrics": [{"scope": _SCOPE, "metrics": found}]}]}
    )


def _spans(record: RequestRecord) -> list[dict[str, Any]]:
    server = _span(record, span_id(record.request_id), SERVER, 0.0, record.total_s)
    server["name"] = f"{operation(record)} {record.deployment}".strip()
    if record.trace_parent:
        server["parentSpanId"] = record.trace_parent.partition("-")[0]
    server["attributes"] += _attributes(
        {
            "http.response.status_code": record.status,
            "gen_ai.usage.input_tokens": record.prompt_tokens if record.usage_source != "none" else None,
            "gen_ai.usage.output_tokens": record.completion_tokens if record.usage_source != "none" else None,
            "modelyard.request_id": record.request_id,
            "modelyard.outcome": record.outcome,
            "modelyard.queued_s": record.queued_s,
            "error.type": error_type(record) or None,
        }
    )
    if record.outcome != "complete":
        server["status"] = {"code": ERROR}
    return [server, *_sendings(record)]


def _sendings(record: RequestRecord) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    tried = [(one.replica, one.began_s, one.ended_s, one.kind if one.failed else "") for one in record.tried]
    if record.replica:
        tried.append((record.replica, record.queued_s, record.total_s, error_type(record)))
    for number, (replica, began_s, ended_s, failed) in enumerate(tried):
        own = hashlib.sha256(f"{record.request_id} {number}".encode()).hexdigest()[:16]
        span = _span(record, own, CLIENT, began_s, ended_s)
        span["name"], span["parentSpanId"] = f"send {replica}", span_id(record.request_id)
        span["attributes"] += _attributes({"modelyard.replica": replica, "error.type": failed or None})
        if failed:
            span["status"] = {"code": ERROR}
        found.append(span)
    return found


def _span(record: RequestRecord, own: str, kind: int, began_s: float, ended_s: float) -> dict[str, Any]:
    return {
        "traceId": trace_id(record),
        "spanId": own,
        "kind": kind,
        "startTimeUnixNano": _nano(record.at + began_s),
        "endTimeUnixNano": _nano(record.at + ended_s),
        "attributes": _attributes(
            {
                "gen_ai.operation.name": operation(record),
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": record.deployment or None,
            }
        ),
    }


def _metric(family: Metric, since: float, now: float) -> dict[str, Any]:
    one = BY_FAMILY[family.name]
    found: dict[str, Any] = {"name": one.name, "description": one.text, "unit": one.unit}
    times = {"startTimeUnixNano": _nano(min(since, now)), "timeUnixNano": _nano(now)}
    if one.kind == "histogram":
        points = [{**times, **point} for point in _histogram(family, one)]
        found["histogram"] = {"aggregationTemporality": CUMULATIVE, "dataPoints": points}
        return found
    points = [
        {**times, "asDouble": sample.value, "attributes": _labels(one, sample.labels)} for sample in family.samples
    ]
    if one.kind == "counter":
        found["sum"] = {"aggregationTemporality": CUMULATIVE, "isMonotonic": True, "dataPoints": points}
    else:
        found["gauge"] = {"dataPoints": points}
    return found


def _histogram(family: Metric, one: Instrument) -> list[dict[str, Any]]:
    """One point for each set of labels. Prometheus' buckets count everything below a bound, OTLP's only their own."""
    below: dict[tuple[str, ...], list[int]] = {}
    sums: dict[tuple[str, ...], float] = {}
    for sample in family.samples:
        who = tuple(sample.labels[label] for label in one.labels)
        if sample.name.endswith("_bucket"):
            below.setdefault(who, []).append(int(sample.value))
        elif sample.name.endswith("_sum"):
            sums[who] = sample.value
    return [
        {
            "count": str(counts[-1]),
            "sum": sums[who],
            "bucketCounts": [str(count - before) for before, count in zip([0, *counts], counts, strict=False)],
            "explicitBounds": list(one.buckets),
            "attributes": _labels(one, dict(zip(one.labels, who, strict=True))),
        }
        for who, counts in below.items()
    ]


def _labels(one: Instrument, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Under their OpenTelemetry names; an empty label is an absent attribute."""
    pairs = zip(one.attributes, one.labels, strict=True)
    return _attributes({name: labels[label] or None for name, label in pairs})


def _resource(resource: Mapping[str, str]) -> dict[str, Any]:
    return {"attributes": _attributes(resource)}


def _attributes(values: Mapping[str, str | int | float | None]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: str | int | float) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}


def _nano(at: float) -> str:
    return str(int(at * 1e9))
