"""Prometheus metrics as a projection: requests from journal records, gauges from what engines and replicas report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelyard.engines.contract import EngineMetrics
from modelyard.observe.seen import SeenRecords
from modelyard.records.journal import RequestRecord

# A second series for each, telling when it began: the library offers to leave it out only for the whole process.
disable_created_metrics()

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Names come from operators and are few; a loop that made them up must not grow the exposition without end.
MAX_VALUES_PER_LABEL = 200
OVERFLOW = "other"

_GAUGES = {
    "running": ("modelyard_engine_running_requests", "Requests that the engine works on."),
    "waiting": ("modelyard_engine_waiting_requests", "Requests that wait inside the engine."),
    "work_done": (
        "modelyard_engine_work_done_tokens",
        "Tokens processed since the engine started: rises while it lives.",
    ),
    "prompt_tokens": ("modelyard_engine_prompt_tokens", "Prompt tokens processed since the engine started."),
    "generated_tokens": ("modelyard_engine_generated_tokens", "Tokens generated since the engine started."),
    "kv_used_ratio": ("modelyard_engine_kv_used_ratio", "Used part of the KV cache, 0 to 1."),
}
_ABSENT = EngineMetrics()


@dataclass(frozen=True, slots=True)
class _ReplicaNow:
    state: str
    metrics: EngineMetrics


class _ReplicaGauges(Collector):
    """Gauges are made when asked for, from what is known then: what an engine does not report has no sample at all."""

    def __init__(self) -> None:
        self.replicas: dict[tuple[str, str], _ReplicaNow] = {}

    def collect(self) -> Iterator[Metric]:
        labels = ("deployment", "replica")
        states = GaugeMetricFamily(
            "modelyard_replica_state", "1 for the state a replica is in.", labels=(*labels, "state")
        )
        for who, now in self.replicas.items():
            states.add_metric((*who, now.state), 1)
        yield states
        for field, (name, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for who, now in self.replicas.items():
                value: float | None = getattr(now.metrics, field)
                if value is not None:
                    gauge.add_metric(who, value)
            yield gauge


class Metrics:
    """Everything behind `/metrics`. One owner feeds it from one task; `render` may be called at any time."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seen = SeenRecords()
        self._known: dict[str, set[str]] = {}
        self._gauges = _ReplicaGauges()
        self._registry.register(self._gauges)
        self._requests = self._counter(
            "modelyard_requests", "Finished requests.", "deployment", "replica", "code", "outcome"
        )
        self._prompt = self._tokens("prompt", "Prompt tokens, those from the prefix cache included.")
        self._cached = self._tokens("cached_prompt", "Prompt tokens that came from the prefix cache.")
        self._completion = self._tokens("completion", "Tokens of answers.")
        self._unreadable = self._counter("modelyard_journal_unreadable_lines", "Journal lines that hold no record.")
        self._duration = self._histogram("modelyard_request_duration_seconds", "From first to last byte.")
        self._first_byte = self._histogram(
            "modelyard_request_first_byte_seconds", "From first byte in to first byte out."
        )
        self._queued = self._histogram("modelyard_request_queue_seconds", "Waiting for a replica.")

    def count(self, records: Iterable[RequestRecord]) -> None:
        """Add finished requests; a record that was counted before is passed over."""
        for record in records:
            if self._seen.add(record):
                self._count(record)

    def count_unreadable(self, lines: int) -> None:
        self._unreadable.inc(lines)

    def set_replica(self, deployment: str, replica: str, state: str, metrics: EngineMetrics | None) -> None:
        """What is known of a replica now; it replaces all that was known. None: the engine reported nothing."""
        self._gauges.replicas[(deployment, replica)] = _ReplicaNow(state, metrics or _ABSENT)

    def forget_replica(self, deployment: str, replica: str) -> None:
        self._gauges.replicas.pop((deployment, replica), None)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _count(self, record: RequestRecord) -> None:
        deployment = self._bounded("deployment", record.deployment)
        replica = self._bounded("replica", record.replica)
        code = self._bounded("code", str(record.status))
        self._requests.labels(deployment, replica, code, record.outcome).inc()
        self._duration.labels(deployment).observe(record.total_s)
        if record.first_byte_s > 0:
            self._first_byte.labels(deployment).observe(record.first_byte_s)
        if record.attempts or record.queued_s > 0:
            self._queued.labels(deployment).observe(record.queued_s)
        if record.usage_source != "none":
            self._count_tokens(deployment, record)

    def _count_tokens(self, deployment: str, record: RequestRecord) -> None:
        who = (deployment, record.usage_source)
        self._prompt.labels(*who).inc(record.prompt_tokens)
        self._cached.labels(*who).inc(record.cached_tokens)
        self._completion.labels(*who).inc(record.completion_tokens)

    def _bounded(self, label: str, value: str) -> str:
        known = self._known.setdefault(label, set())
        if value in known:
            return value
        if len(known) >= MAX_VALUES_PER_LABEL:
            return OVERFLOW
        known.add(value)
        return value

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _tokens(self, kind: str, text: str) -> Counter:
        return self._counter(f"modelyard_{kind}_tokens", f"{text} `source`: who counted.", "deployment", "source")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("deployment",), registry=self._registry, buckets=SECONDS)
