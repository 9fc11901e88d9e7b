"""One subject under one kind of load: what it costs, and the proofs that it did the work."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass

from benchmarks import gateway_load as load
from benchmarks import processes
from benchmarks.gateway_rows import HUGE_BODY, LARGE_BODY, MB, ROWS, SMALL_BODY, STREAMS
from benchmarks.jobs import LoadProcess, WrongResult
from benchmarks.stalls import probing
from benchmarks.subjects import Journal, Subject, Upstream
from benchmarks.yard_at_rest import yard_rss_bytes

MEMORY_EVERY_S = 0.2


@dataclass(frozen=True)
class Sizes:
    """How much one round sends; the warm-up before it is not measured."""

    unary: int = 40_000
    large: int = 10_000
    huge: int = 600
    latency: int = 5_000
    stream_events: int = 250
    streams: int = STREAMS

    @classmethod
    def quick(cls) -> Sizes:
        return cls(unary=4_000, large=1_000, huge=60, latency=500, stream_events=50)

    def shared(self, share: float) -> Sizes:
        """The same for a subject that gets only a part; never so little that a figure would be chance."""
        return Sizes(
            unary=max(200, round(self.unary * share)),
            large=max(50, round(self.large * share)),
            huge=max(20, round(self.huge * share)),
            latency=max(200, round(self.latency * share)),
            stream_events=max(25, round(self.stream_events * share)),
            streams=self.streams,
        )


@dataclass(frozen=True)
class Cost:
    """What one job took: the load generator's result, and the subject's CPU over exactly that job."""

    result: dict[str, float]
    cpu_s: float

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_s / self.result["requests"] * 1e6


class Bench:
    """Runs groups of measurements and keeps one number per metric, subject and round."""

    def __init__(self, generator: LoadProcess, upstream: Upstream, sizes: Sizes) -> None:
        self.generator, self.upstream, self.sizes = generator, upstream, sizes
        self.samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.records_counted = 0

    def measure(self, group: str, subject: Subject) -> None:
        """Raises WrongResult where the subject's answers, or what the engine and the journal counted, are wrong."""
        getattr(self, f"_{group}")(subject, self.sizes.shared(subject.share) if subject.share < 1 else self.sizes)

    def at_rest(self, subject: Subject) -> None:
        """What is resident before the first load, one request answered."""
        if subject.pid is not None:
            self._keep(subject, "idle_rss_mib", processes.rss_bytes(processes.tree(subject.pid)) / MB)

    def forget(self, subject: Subject, group: str) -> None:
        """Drop what a group kept for a subject that turned out not to speak it."""
        for row in ROWS[group]:
            self.samples[row.metric].pop(subject.name, None)

    def _unary(self, subject: Subject, sizes: Sizes) -> None:
        with self._connected(subject, 32):
            self._metered(subject, load.Unary(sizes.unary // 5, SMALL_BODY))
            cost = self._metered(subject, load.Unary(sizes.unary, SMALL_BODY))
        self._keep_cpu(subject, f"unary_{SMALL_BODY}_cpu_us", cost.cpu_us_per_request)
        self._keep(subject, "unary_requests_per_s", cost.result["requests"] / cost.result["elapsed_s"])

    def _large(self, subject: Subject, sizes: Sizes) -> None:
        self._bodies(subject, LARGE_BODY, sizes.large)

    def _huge(self, subject: Subject, sizes: Sizes) -> None:
        self._bodies(subject, HUGE_BODY, sizes.huge)

    def _bodies(self, subject: Subject, body_bytes: int, count: int) -> None:
        with self._connected(subject, 8):
            self._metered(subject, load.Unary(count // 5, body_bytes))
            cost = self._metered(subject, load.Unary(count, body_bytes))
            self._keep_cpu(subject, f"unary_{body_bytes}_cpu_us", cost.cpu_us_per_request)
            if subject.pid is not None and subject.health is not None:
                # Apart from the CPU figure: the probe's own requests cost some.
                with probing(subject) as probe:
                    self._metered(subject, load.Unary(count, body_bytes))
                self._keep(subject, f"stall_{body_bytes}_ms", max(probe.stalls_s) * 1e3)
                self._keep(subject, f"stall_raw_{body_bytes}_ms", max(probe.raw_s) * 1e3)

    def _latency(self, subject: Subject, sizes: Sizes) -> None:
        with self._connected(subject, 1):
            self._metered(subject, load.Unary(sizes.latency // 5, SMALL_BODY))
            result = self._metered(subject, load.Unary(sizes.latency, SMALL_BODY)).result
        self._keep(subject, "latency_p50_ms", result["p50_s"] * 1e3)
        self._keep(subject, "latency_p99_ms", result["p99_s"] * 1e3)

    def _streams(self, subject: Subject, sizes: Sizes) -> None:
        with self._connected(subject, sizes.streams):
            self._metered(subject, load.Streams(10))
            with watching_memory(subject) as peak_bytes:
                cost = self._metered(subject, load.Streams(sizes.stream_events))
        self._keep_cpu(subject, "chunk_cpu_us", cost.cpu_s / cost.result["events"] * 1e6)
        self._keep(subject, "gap_p99_ms", cost.result["gap_p99_s"] * 1e3)
        self._keep(subject, "gap_max_ms", cost.result["gap_max_s"] * 1e3)
        if peak_bytes:
            self._keep(subject, "stream_rss_mib", max(peak_bytes) / MB)

    def _translated(self, subject: Subject, sizes: Sizes) -> None:
        with self._connected(subject, sizes.streams):
            self._metered(subject, load.Streams(10, subject.translates))
            cost = self._metered(subject, load.Streams(sizes.stream_events, subject.translates))
        self._keep_cpu(subject, "translated_chunk_cpu_us", cost.cpu_s / cost.result["events"] * 1e6)

    def _idle(self, subject: Subject, sizes: Sizes) -> None:
        """Of the whole product, not of a gateway alone: measured in the first round, and not of others."""
        if subject.journal is not None and not self.samples["yard_rss_mib"]:
            self._keep(subject, "yard_rss_mib", yard_rss_bytes() / MB)

    def _keep(self, subject: Subject, metric: str, value: float) -> None:
        self.samples[metric][subject.name].append(value)

    def _keep_cpu(self, subject: Subject, metric: str, value: float) -> None:
        if subject.pid is not None:
            self._keep(subject, metric, value)

    @contextlib.contextmanager
    def _connected(self, subject: Subject, connections: int) -> Generator[None]:
        self.generator.run(load.Open(subject.address, subject.key, subject.model, connections, subject.rewritten))
        try:
            yield
        finally:
            self.generator.run(load.Close())

    def _metered(self, subject: Subject, job: load.Unary | load.Streams) -> Cost:
        asked_before = self.upstream.counts()
        pids = processes.tree(subject.pid) if subject.pid is not None else frozenset[int]()
        cpu_before_ns = processes.cpu_ns(pids)
        try:
            result = self.generator.run(job)
            cpu_s = (processes.cpu_ns(pids) - cpu_before_ns) / 1e9
        except WrongResult as error:
            raise WrongResult(f"{subject.name}: {error}") from None
        except OSError as error:
            raise WrongResult(f"{subject.name}: one of its processes ended under load") from error
        if subject.pid is not None and processes.tree(subject.pid) != pids:
            raise WrongResult(f"{subject.name}: its processes changed under load; their CPU cannot be summed")
        self._check_engine(subject, job, asked_before, int(result["requests"]))
        if subject.journal is not None:
            self._check_journal(subject.journal, int(result["requests"]))
        return Cost(result, cpu_s)

    def _check_engine(
        self, subject: Subject, job: load.Unary | load.Streams, before: dict[str, int], sent: int
    ) -> None:
        now = self.upstream.counts()
        asked = {name: now[name] - before[name] for name in now}
        kind = "unary" if isinstance(job, load.Unary) else "streams"
        if asked["unary"] + asked["streams"] != sent or asked[kind] != sent or asked["cut_streams"]:
            raise WrongResult(f"{subject.name}: {sent} requests ({kind}) were sent, the engine counted {asked}")
        if isinstance(job, load.Unary) and asked["body_bytes"] < 0.9 * sent * job.body_bytes:
            raise WrongResult(f"{subject.name}: the engine got only {asked['body_bytes']} bytes of bodies")

    def _check_journal(self, journal: Journal, sent: int) -> None:
        records = journal.new_records()
        good = [r for r in records if r.outcome == "complete" and r.status == 200 and r.key_id]
        if len(good) != sent or len(records) != sent:
            raise WrongResult(
                f"gateway: {sent} requests were sent, its journal has {len(records)} records, {len(good)} of them "
                f"complete with status and key"
            )
        if unmeasured := [record for record in records if record.usage_source != "engine"]:
            raise WrongResult(f"gateway: {len(unmeasured)} journal records without the engine's own usage")
        self.records_counted += sent


@contextlib.contextmanager
def watching_memory(subject: Subject) -> Generator[list[int]]:
    """Collects the resident bytes of the subject's processes until the block ends."""
    seen: list[int] = []
    stop = threading.Event()

    def watch(pid: int) -> None:
        while not stop.wait(MEMORY_EVERY_S):
            with contextlib.suppress(OSError):  # a process that ended is found by the check of the tree
                seen.append(processes.rss_bytes(processes.tree(pid)))

    thread = threading.Thread(target=watch, args=(subject.pid,))
    if subject.pid is not None:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        if subject.pid is not None:
            thread.join()
