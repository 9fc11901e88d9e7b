"""What our gateway costs beside nginx: the same requests, the same mock engine, one run, interleaved rounds.

`python -m benchmarks.gateway` prints a table and exits 0 where every budget holds, 1 where one is broken or an answer
or a journal record is wrong (it says which), 2 where something needed for measuring is absent. Every response is
compared with what the engine said, every stream byte for byte; the counts of the engine and of the journal must equal
what was sent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run by path: the folder of this file stands where the repository should
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import gateway_load as load
from benchmarks import processes, subjects
from benchmarks.figures import Budget, Verdict, judge, rotated
from benchmarks.jobs import LoadProcess, WrongResult
from benchmarks.stalls import probing
from benchmarks.subjects import CannotMeasure, Journal, Subject, Upstream

KB, MB = 1024, 1024 * 1024
SMALL_BODY = 800
BODIES = (32 * KB, MB)
STREAMS = 200
MEMORY_EVERY_S = 0.2

GROUPS = ("unary", "bodies", "latency", "streams")
BUDGETS = {
    "unary": (Budget("CPU per unary request, 0.8 KB body [µs]", f"unary_{SMALL_BODY}_cpu_us", 3.0, "over", "nginx"),),
    "bodies": (
        Budget("CPU per unary request, 32 KB body [µs]", f"unary_{32 * KB}_cpu_us", None, "over", "nginx"),
        Budget("CPU per unary request, 1 MB body [µs]", f"unary_{MB}_cpu_us", None, "over", "nginx"),
        Budget("longest event-loop stall, 32 KB bodies [ms]", f"stall_{32 * KB}_ms", 20, "alone", rounds="maximum"),
        Budget("longest event-loop stall, 1 MB bodies [ms]", f"stall_{MB}_ms", 20, "alone", rounds="maximum"),
    ),
    "latency": (
        Budget("added latency, one client, p50 [ms]", "latency_p50_ms", 0.3, "less", "direct"),
        Budget("added latency, one client, p99 [ms]", "latency_p99_ms", 2.0, "less", "direct"),
    ),
    "streams": (
        Budget(f"CPU per relayed chunk, {STREAMS} streams [µs]", "chunk_cpu_us", 1.5, "over", "nginx"),
        Budget("added gap between chunks, p99 [ms]", "gap_p99_ms", 5.0, "less", "direct"),
        Budget(f"resident memory, {STREAMS} streams [MiB]", "stream_rss_mib", 60, "alone", rounds="maximum"),
    ),
}


@dataclass(frozen=True)
class Sizes:
    """How much one round sends; the warm-up before it is not measured."""

    unary: int = 40_000
    bodies: tuple[int, int] = (10_000, 600)
    latency: int = 5_000
    stream_events: int = 250

    @classmethod
    def quick(cls) -> Sizes:
        return cls(unary=4_000, bodies=(1_000, 60), latency=500, stream_events=50)


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
        getattr(self, f"_{group}")(subject)

    def _unary(self, subject: Subject) -> None:
        with self._connected(subject, 32):
            self._metered(subject, load.Unary(self.sizes.unary // 5, SMALL_BODY))
            cost = self._metered(subject, load.Unary(self.sizes.unary, SMALL_BODY))
        self._keep_cpu(subject, f"unary_{SMALL_BODY}_cpu_us", cost.cpu_us_per_request)
        self._keep(subject, "unary_requests_per_s", cost.result["requests"] / cost.result["elapsed_s"])

    def _bodies(self, subject: Subject) -> None:
        for body_bytes, count in zip(BODIES, self.sizes.bodies, strict=True):
            with self._connected(subject, 8):
                self._metered(subject, load.Unary(count // 5, body_bytes))
                cost = self._metered(subject, load.Unary(count, body_bytes))
                self._keep_cpu(subject, f"unary_{body_bytes}_cpu_us", cost.cpu_us_per_request)
                if subject.pid is not None:
                    # Apart from the CPU figure: the probe's own requests cost some.
                    with probing(subject) as probe:
                        self._metered(subject, load.Unary(count, body_bytes))
                    self._keep(subject, f"stall_{body_bytes}_ms", max(probe.stalls_s) * 1e3)
                    self._keep(subject, f"stall_raw_{body_bytes}_ms", max(probe.raw_s) * 1e3)

    def _latency(self, subject: Subject) -> None:
        with self._connected(subject, 1):
            self._metered(subject, load.Unary(self.sizes.latency // 5, SMALL_BODY))
            result = self._metered(subject, load.Unary(self.sizes.latency, SMALL_BODY)).result
        self._keep(subject, "latency_p50_ms", result["p50_s"] * 1e3)
        self._keep(subject, "latency_p99_ms", result["p99_s"] * 1e3)

    def _streams(self, subject: Subject) -> None:
        with self._connected(subject, STREAMS):
            self._metered(subject, load.Streams(10))
            with watching_memory(subject) as peak_bytes:
                cost = self._metered(subject, load.Streams(self.sizes.stream_events))
        self._keep_cpu(subject, "chunk_cpu_us", cost.cpu_s / cost.result["events"] * 1e6)
        self._keep(subject, "gap_p99_ms", cost.result["gap_p99_s"] * 1e3)
        self._keep(subject, "gap_max_ms", cost.result["gap_max_s"] * 1e3)
        if peak_bytes:
            self._keep(subject, "stream_rss_mib", max(peak_bytes) / MB)

    def _keep(self, subject: Subject, metric: str, value: float) -> None:
        self.samples[metric][subject.name].append(value)

    def _keep_cpu(self, subject: Subject, metric: str, value: float) -> None:
        if subject.pid is not None:
            self._keep(subject, metric, value)

    @contextlib.contextmanager
    def _connected(self, subject: Subject, connections: int) -> Generator[None]:
        self.generator.run(load.Open(subject.address, subject.key, subject.model, connections))
        yield
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


def run(bench: Bench, groups: Sequence[str], everyone: Sequence[Subject], rounds: int) -> None:
    by_name = {subject.name: subject for subject in everyone}
    for subject in everyone:
        if subject.journal is not None:
            subject.journal.new_records()  # those of the wait for its readiness
    began = time.monotonic()
    for number in range(rounds):
        for group in groups:
            for name in rotated(list(by_name), number):
                bench.measure(group, by_name[name])
        print(f"round {number + 1} of {rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def verdicts(bench: Bench, groups: Sequence[str], names: Sequence[str]) -> list[Verdict]:
    return [judge(budget, bench.samples, name) for name in names for group in groups for budget in BUDGETS[group]]


def table(bench: Bench, found: Sequence[Verdict]) -> str:
    """One line a verdict: the medians of all, then the comparison with its spread over the rounds."""
    head = ("what", "subject", "direct", "nginx", "subject's", "compared: median (min-max)", "budget", "")
    lines: list[tuple[str, ...]] = [head]
    for verdict in found:
        budget, spread = verdict.budget, verdict.spread
        medians = [_median(bench, budget.metric, name) for name in ("direct", "nginx", verdict.subject)]
        sign = {"over": "x ", "less": "+ ", "alone": ""}[budget.compare]
        compared = f"{sign}{spread.median:.3g} ({spread.low:.3g}-{spread.high:.3g}) {budget.against}"
        limit = "printed" if budget.limit is None else f"{budget.rounds} <= {budget.limit:g}"
        # Budgets are ours: other subjects are shown beside them.
        judged = "" if budget.limit is None or verdict.subject != "gateway" else ("ok" if verdict.within else "BROKEN")
        lines.append((budget.row, verdict.subject, *medians, compared.strip(), limit, judged))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _median(bench: Bench, metric: str, name: str) -> str:
    values = sorted(bench.samples[metric].get(name, ()))
    return f"{values[len(values) // 2]:.3g}" if values else "-"


def report(
    bench: Bench, found: Sequence[Verdict], chosen: argparse.Namespace, foreign_cores: float
) -> dict[str, object]:
    """What the JSON file says: enough to repeat the run and to judge it again."""
    return {
        "schema": "benchmark-gateway/v1",
        "command": [sys.executable, *sys.argv],
        "at": time.time(),
        "machine": {
            "processor": processes.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "foreign_cores": foreign_cores,
        "rounds": chosen.rounds,
        "upstream": chosen.upstream_kind,
        "sizes": asdict(bench.sizes),
        "journal_records_counted": bench.records_counted,
        "samples": bench.samples,
        "verdicts": [
            {"subject": v.subject, **asdict(v.budget), "spread": asdict(v.spread), "within": v.within} for v in found
        ],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="at least 5; the order rotates from round to round")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests: a smoke test, not evidence")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure only this group (repeatable)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    parser.add_argument(
        "--upstream-kind", choices=("unix", "tcp"), default="unix", help="how subjects reach the engine"
    )
    parser.add_argument("--subject", action="append", default=[], metavar="NAME=COMMAND",
                        help="another proxy beside ours; {port} {upstream} {model} {folder} are filled in")  # fmt: skip
    parser.add_argument("--without-gateway", action="store_true", help="measure only nginx and --subject commands")
    chosen = parser.parse_args()
    if chosen.rounds < 5:
        parser.error("--rounds: fewer than 5 rounds say nothing about the spread")
    return chosen


def main() -> int:
    chosen = arguments()
    subjects.end_children_on_sigterm()
    groups = [group for group in GROUPS if not chosen.only or group in chosen.only]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        try:
            upstream = stack.enter_context(subjects.mock_engine(folder, chosen.upstream_kind))
            everyone = [Subject("direct", upstream.url), stack.enter_context(subjects.nginx(folder, upstream))]
            if not chosen.without_gateway:
                everyone.append(stack.enter_context(subjects.our_gateway(folder, upstream.url)))
            everyone += [stack.enter_context(subjects.command(text, folder, upstream)) for text in chosen.subject]
            generator = LoadProcess("benchmarks.gateway_load", folder / "load.log")
            stack.callback(generator.end)
            bench = Bench(generator, upstream, Sizes.quick() if chosen.quick else Sizes())
            neighbours = processes.Neighbours()
            run(bench, groups, everyone, chosen.rounds)
            foreign_cores = neighbours.cores_taken()
        except CannotMeasure as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 2
        except WrongResult as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
    names = [subject.name for subject in everyone if subject.name not in ("direct", "nginx")] or ["nginx"]
    found = verdicts(bench, groups, names)
    print(table(bench, found))
    if bench.records_counted:
        print(f"journal: {bench.records_counted} records, one for each request sent, warm-ups included")
    print(processes.note_on_neighbours(foreign_cores))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report(bench, found, chosen, foreign_cores), indent=1) + "\n")
    broken = [verdict.budget.row for verdict in found if verdict.subject == "gateway" and not verdict.within]
    for row in broken:
        print(f"budget broken: {row}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
