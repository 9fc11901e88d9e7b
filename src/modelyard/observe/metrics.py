"""Prometheus metrics as a projection: requests from journal records, gauges from what engines and replicas report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelyard.engines.contract import EngineMetrics
from modelyard.observe import instruments
from modelyard.observe.instruments import Instrument
from modelyard.observe.operations import OTHER, PROVIDER, error_type, operation
from modelyard.observe.seen import SeenRecords
from modelyard.records.decision import Decision
from modelyard.records.journal import RequestRecord

# A second series for each, telling when it began: the library offers to leave it out only for the whole process.
disable_created_metrics()

# Names come from operators and are few; a loop that made them up must not grow the exposition without end.
MAX_VALUES_PER_LABEL = 200
OVERFLOW = "other"
PICO = 10**12

_ABSENT = EngineMetrics()


@dataclass(frozen=True, slots=True)
class _ReplicaNow:
    state: str
    metrics: EngineMetrics


class _ReplicaGauges(Collector):
    """Gauges are made when asked for, from what is known then: what an engine does not report has no sample at all."""

    def __init__(self) -> None:
        self.replicas: dict[tuple[str, str], _ReplicaNow] = {}
        # With the time of that choice, in Unix seconds: records come in the order in which requests end.
        self.seats: dict[tuple[str, str], tuple[float, int]] = {}

    def chose(self, deployment: str, decision: Decision, at: float) -> None:
        for candidate in decision.candidates:
            who = (deployment, candidate.replica)
            if who in self.replicas and at >= self.seats.get(who, (0.0, 0))[0]:
                self.seats[who] = (at, candidate.max_in_flight)

    def forget(self, deployment: str, replica: str) -> None:
        self.replicas.pop((deployment, replica), None)
        self.seats.pop((deployment, replica), None)

    def collect(self) -> Iterator[Metric]:
        states = _gauge(instruments.REPLICA_STATE)
        for who, now in self.replicas.items():
            states.add_metric((*who, now.state), 1)
        yield states
        seats = _gauge(instruments.REPLICA_SEATS)
        for who, (_, number) in self.seats.items():
            seats.add_metric(who, number)
        yield seats
        for field, instrument in instruments.ENGINE.items():
            gauge = _gauge(instrument)
            for who, now in self.replicas.items():
                value: float | None = getattr(now.metrics, field)
                if value is not None:
                    gauge.add_metric(who, value)
            yield gauge


class _Money(Collector):
    """Sums in whole numbers: a float forgets the millionths once there are enough of them."""

    def __init__(self) -> None:
        self.picos: dict[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        cost = instruments.COST
        family = CounterMetricFamily(cost.family, cost.text, labels=cost.labels)
        for deployment, picos in self.picos.items():
            family.add_metric((deployment,), picos / PICO)
        yield family


def _gauge(instrument: Instrument) -> GaugeMetricFamily:
    return GaugeMetricFamily(instrument.family, instrument.text, labels=instrument.labels)


class Metrics:
    """Everything behind `/metrics`. One owner feeds it from one task; `render` may be called at any time. `since` is
    when the oldest request that was counted began: Unix seconds, infinity while there is none."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.since = float("inf")
        self._seen = SeenRecords()
        self._known: dict[str, set[str]] = {}
        self._gauges, self._money = _ReplicaGauges(), _Money()
        self.registry.register(self._gauges)
        self.registry.register(self._money)
        self._requests = self._counter(instruments.REQUESTS)
        self._refusals = self._counter(instruments.REFUSALS)
        self._retries = self._counter(instruments.RETRIES)
        self._resumptions = self._counter(instruments.RESUMPTIONS)
        self._prompt = self._counter(instruments.PROMPT_TOKENS)
        self._cached = self._counter(instruments.CACHED_TOKENS)
        self._completion = self._counter(instruments.COMPLETION_TOKENS)
        self._unreadable = self._counter(instruments.UNREADABLE)
        self._queued = self._histogram(instruments.QUEUE)
        self._seen_by_clients = self._histogram(instruments.SERVER_DURATION)
        self._seen_of_engines = self._histogram(instruments.CLIENT_DURATION)
        self._first_token = self._histogram(instruments.FIRST_TOKEN)
        self._output_token = self._histogram(instruments.OUTPUT_TOKEN)
        self._usage = self._histogram(instruments.TOKEN_USAGE)

    def count(self, records: Iterable[RequestRecord]) -> None:
        """Add finished requests; a record that was counted before is passed over."""
        for record in records:
            if self._seen.add(record):
                self.since = min(self.since, record.at)
                self._count(record)

    def count_unreadable(self, lines: int) -> None:
        self._unreadable.inc(lines)

    def set_replica(self, deployment: str, replica: str, state: str, metrics: EngineMetrics | None) -> None:
        """What is known of a replica now; it replaces all that was known. None: the engine reported nothing."""
        self._gauges.replicas[(deployment, replica)] = _ReplicaNow(state, metrics or _ABSENT)

    def forget_replica(self, deployment: str, replica: str) -> None:
        self._gauges.forget(deployment, replica)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def _count(self, record: RequestRecord) -> None:
        deployment = self._bounded("deployment", record.deployment)
        replica = self._bounded("replica", record.replica)
        code = self._bounded("code", str(record.status))
        self._requests.labels(deployment, replica, code, record.outcome).inc()
        if record.outcome in ("refused", "unavailable"):
            self._refusals.labels(deployment, self._bounded("reason", error_type(record))).inc()
        if record.attempts or record.queued_s > 0:
            self._queued.labels(deployment).observe(record.queued_s)
        if record.usage_source != "none":
            self._count_tokens(deployment, record)
        if record.cost_pico:
            self._money.picos[deployment] = self._money.picos.get(deployment, 0) + record.cost_pico
        for tried in record.tried:
            self._retries.labels(deployment, self._bounded("replica", tried.replica), tried.kind).inc()
        if record.resumed:
            self._resumptions.labels(deployment).inc(record.resumed)
        if record.decision is not None:
            self._gauges.chose(record.deployment, record.decision, record.at + record.queued_s)
        self._count_operation(deployment, record)

    def _count_tokens(self, deployment: str, record: RequestRecord) -> None:
        who = (deployment, record.usage_source)
        self._prompt.labels(*who).inc(record.prompt_tokens)
        self._cached.labels(*who).inc(record.cached_tokens)
        self._completion.labels(*who).inc(record.completion_tokens)

    def _count_operation(self, deployment: str, record: RequestRecord) -> None:
        """What OpenTelemetry's conventions ask for."""
        name = operation(record)
        if name is None:
            return
        who = (self._bounded("operation", name, OTHER), PROVIDER, deployment)
        failed = self._bounded("error", error_type(record), OTHER)
        self._seen_by_clients.labels(*who, failed).observe(record.total_s)
        if record.attempts:
            self._seen_of_engines.labels(*who, failed).observe(max(0.0, record.total_s - record.queued_s))
        if record.usage_source == "engine":
            self._usage.labels(*who, "input").observe(record.prompt_tokens)
            self._usage.labels(*who, "output").observe(record.completion_tokens)
        # Of a plain answer nobody saw the first token.
        if record.stream and record.outcome == "complete" and record.first_byte_s > 0:
            self._first_token.labels(*who).observe(record.first_byte_s)
            if record.completion_tokens > 1:
                rest_s = (record.total_s - record.first_byte_s) / (record.completion_tokens - 1)
                self._output_token.labels(*who).observe(rest_s)

    def _bounded(self, label: str, value: str, overflow: str = OVERFLOW) -> str:
        known = self._known.setdefault(label, set())
        if value in known:
            return value
        if len(known) >= MAX_VALUES_PER_LABEL:
            return overflow
        known.add(value)
        return value

    def _counter(self, instrument: Instrument) -> Counter:
        return Counter(instrument.family, instrument.text, instrument.labels, registry=self.registry)

    def _histogram(self, instrument: Instrument) -> Histogram:
        return Histogram(
            instrument.family,
            instrument.text,
            instrument.labels,
            registry=self.registry,
            buckets=instrument.buckets,
        )
