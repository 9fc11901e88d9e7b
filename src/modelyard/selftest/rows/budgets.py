"""Rows 1 to 3: what the gateway adds, measured by the benchmarks of the checkout."""

from __future__ import annotations

from typing import Any

from modelyard.selftest.bench import Bench
from modelyard.selftest.checkout import benchmark
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

ROUNDS = 5
STREAMS, EVENTS_PER_S = 512, 50
ADDED_GAP_MS = 25.0
STREAMS_RSS_MIB = 200.0


async def _gateway(bench: Bench, group: str) -> Outcome:
    tally = Tally()
    bench.progress(tally.tried(await _judged(group, tally)))
    return tally.outcome()


async def _judged(group: str, tally: Tally) -> int:
    """One group of benchmarks.gateway: its budgets are the bounds. Returns how many records were counted. Raises
    CannotRun where nginx, which some of the budgets are ratios to, is not there."""
    found = await benchmark("gateway", "--only", group, "--rounds", str(ROUNDS))
    if "wrong" in found:
        tally.wrong(found["wrong"])
        return 0
    for verdict in found["verdicts"]:
        budget: dict[str, Any] = verdict["budget"]
        against = f", {'times' if budget['compare'] == 'over' else 'beside'} {budget['against']}"
        name = f"{budget['row']}{against if budget['against'] else ''} ({budget['rounds']} of {ROUNDS} rounds)"
        tally.figure(name, verdict["judged"], at_most=budget["limit"])
    for unjudged in found["unjudged"]:
        if unjudged["limit"] is not None:
            tally.wrong(f"not judged: {unjudged['row']}: {unjudged['why']}")
    return _told_of(found, tally)


def _told_of(found: dict[str, Any], tally: Tally) -> int:
    records: int = found["journal_records_counted"]
    tally.saw("journal records, one for each request", records)
    tally.figure("cores that other programs took meanwhile", found["foreign_cores"])
    return records


async def latency(bench: Bench) -> Outcome:
    return await _gateway(bench, "latency")


async def throughput(bench: Bench) -> Outcome:
    return await _gateway(bench, "unary")


async def fanout(bench: Bench) -> Outcome:
    """512 streams of 50 events a second, gateway and load generator on cores of their own; then the budgets of 200
    streams, beside nginx."""
    events = -(-bench.size // STREAMS)
    found = await benchmark("fanout", "--streams", str(STREAMS), "--events", str(events))
    tally = Tally()
    if "wrong" in found:
        tally.wrong(found["wrong"])
        return tally.outcome()
    samples: dict[str, dict[str, list[float]]] = found["samples"]
    added_ms = samples["gap_p99_ms"]["gateway"][0] - samples["gap_p99_ms"]["direct"][0]
    tally.figure(f"added gap between events, {STREAMS} streams, p99", added_ms, "ms", at_most=ADDED_GAP_MS)
    tally.figure(
        f"resident memory, {STREAMS} streams", samples["stream_rss_mib"]["gateway"][0], "MiB", at_most=STREAMS_RSS_MIB
    )
    tally.figure("CPU for each event", samples["chunk_cpu_us"]["gateway"][0], "µs")
    tally.figure("longest gap", samples["gap_max_ms"]["gateway"][0], "ms")
    _told_of(found, tally)
    await _judged("streams", tally)
    bench.progress(tally.tried(found["events"]))
    return tally.outcome()


LATENCY = Row(
    key="1",
    name="added latency, one client",
    claim="With keys, limits, metrics and journal on, the gateway adds at most 0.3 ms (p50) and 2 ms (p99) to a plain "
    "request; every answer is what the engine said, and the journal holds one record for each.",
    unit="requests",
    full=20_000,
    short=0,
    run=latency,
    sources=("gateway", "benchmarks/gateway.py"),
    takes_s=60,
)
THROUGHPUT = Row(
    key="2",
    name="plain requests, 32 clients",
    claim="A plain request of 0.8 KB costs at most 3 times the CPU of nginx in the same run; no answer is wrong, and "
    "the journal holds one record for each.",
    unit="requests",
    full=200_000,
    short=0,
    run=throughput,
    sources=("gateway", "benchmarks/gateway.py"),
    takes_s=150,
)
FANOUT = Row(
    key="3",
    name=f"{STREAMS} streams of {EVENTS_PER_S} events a second",
    claim="No event is lost, doubled or moved: every stream is byte for byte what the engine said; the gap between "
    "events grows by at most 25 ms (p99), and the gateway takes at most 200 MiB. With 200 streams a relayed event "
    "costs at most 1.5 times the CPU of nginx in the same run, the gap grows by at most 5 ms (p99), and the gateway "
    "takes at most 60 MiB.",
    unit="events",
    full=600_000,
    short=0,
    run=fanout,
    sources=("gateway", "benchmarks/fanout.py"),
    takes_s=180,
)
ROWS = (LATENCY, THROUGHPUT, FANOUT)
