"""What the gateway benchmark measures, and what of it is budgeted. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.figures import Budget

KB, MB = 1024, 1024 * 1024
SMALL_BODY = 800
LARGE_BODY, HUGE_BODY = 32 * KB, MB
STREAMS = 200

GROUPS = ("unary", "large", "huge", "latency", "streams", "translated", "idle")


@dataclass(frozen=True, slots=True)
class Row:
    """One metric, as the table shows it; `over_direct`: what the subject adds to the engine asked directly."""

    label: str
    metric: str
    over_direct: bool = False


ROWS = {
    "unary": (
        Row("CPU per unary request, 0.8 KB body [µs]", f"unary_{SMALL_BODY}_cpu_us"),
        Row("requests per second, 32 clients", "unary_requests_per_s"),
    ),
    "large": (
        Row("CPU per unary request, 32 KB body [µs]", f"unary_{LARGE_BODY}_cpu_us"),
        Row("longest event-loop stall, 32 KB bodies [ms]", f"stall_{LARGE_BODY}_ms"),
    ),
    "huge": (
        Row("CPU per unary request, 1 MB body [µs]", f"unary_{HUGE_BODY}_cpu_us"),
        Row("longest event-loop stall, 1 MB bodies [ms]", f"stall_{HUGE_BODY}_ms"),
    ),
    "latency": (
        Row("added latency, one client, p50 [ms]", "latency_p50_ms", over_direct=True),
        Row("added latency, one client, p99 [ms]", "latency_p99_ms", over_direct=True),
    ),
    "streams": (
        Row(f"CPU per relayed chunk, {STREAMS} streams [µs]", "chunk_cpu_us"),
        Row("added gap between chunks, p99 [ms]", "gap_p99_ms", over_direct=True),
        Row("resident memory before the first load [MiB]", "idle_rss_mib"),
        Row(f"resident memory, {STREAMS} streams [MiB]", "stream_rss_mib"),
    ),
    "translated": (Row("CPU per chunk told in another dialect (nginx: as it is) [µs]", "translated_chunk_cpu_us"),),
    "idle": (Row("resident memory at rest: yard, control and gateway [MiB]", "yard_rss_mib"),),
}

# What the gateway adds or takes by itself: metric -> (limit, compare, what of the rounds is judged).
BOUNDS: dict[str, tuple[float, Literal["less", "alone"], Literal["median", "maximum"]]] = {
    f"stall_{LARGE_BODY}_ms": (20, "alone", "maximum"),
    f"stall_{HUGE_BODY}_ms": (20, "alone", "maximum"),
    "latency_p50_ms": (0.3, "less", "median"),
    "latency_p99_ms": (2.0, "less", "median"),
    "gap_p99_ms": (5.0, "less", "median"),
    "stream_rss_mib": (60, "alone", "maximum"),
    "yard_rss_mib": (150, "alone", "maximum"),
}

# What it costs beside others: (metric, other) -> (limit, what is judged). A peer counts as beaten where the whole 95 %
# interval of the ratio says so.
RATIOS: dict[tuple[str, str], tuple[float, Literal["median", "upper"]]] = {
    (f"unary_{SMALL_BODY}_cpu_us", "nginx"): (3.0, "median"),
    (f"unary_{SMALL_BODY}_cpu_us", "vllm-router"): (1.0, "upper"),
    (f"unary_{SMALL_BODY}_cpu_us", "litellm"): (1 / 80, "upper"),
    ("chunk_cpu_us", "nginx"): (1.5, "median"),
    ("chunk_cpu_us", "vllm-router"): (1.0, "upper"),
    ("translated_chunk_cpu_us", "nginx"): (3.0, "median"),
}


def budgets(groups: Sequence[str], others: Sequence[str]) -> list[Budget]:
    """All that is said about the gateway: its bounds, and every CPU row beside each of `others`, budgeted or not."""
    found: list[Budget] = []
    for row in (row for group in groups for row in ROWS[group]):
        if row.metric in BOUNDS:
            limit, compare, rounds = BOUNDS[row.metric]
            against = "direct" if compare == "less" else ""
            found.append(Budget(row.label, row.metric, limit, compare, against, rounds))
        elif row.metric.endswith("_cpu_us"):
            for other in others:
                limit, judged = RATIOS.get((row.metric, other), (None, "median"))
                found.append(Budget(row.label, row.metric, limit, "over", other, judged))
    return found
