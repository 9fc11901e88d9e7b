"""What the engine programs that we ship say of themselves, under names that are ours."""

from __future__ import annotations

from modelyard.engines import prometheus_text
from modelyard.engines.contract import EngineMetrics

# What `read_own_metrics` finds on every one of them.
OWN_METRICS = frozenset(
    {"running", "waiting", "work_done", "prompt_tokens", "generated_tokens", "kv_used_ratio"},
)


def read_own_metrics(text: str) -> EngineMetrics:
    """From the text exposition; work is counted in steps, which rise in a long prefill too."""
    samples = prometheus_text.parse(text)

    def value(name: str) -> float | None:
        return prometheus_text.total(samples, f"modelyard_engine_{name}")

    return EngineMetrics(
        running=value("requests_running"),
        waiting=value("requests_waiting"),
        work_done=value("steps_total"),
        prompt_tokens=value("prompt_tokens_total"),
        generated_tokens=value("generation_tokens_total"),
        kv_used_ratio=value("kv_cache_usage_ratio"),
    )
