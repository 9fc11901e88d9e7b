"""What is the same for the engine programs that we ship: how they are started, and what they say of themselves."""

from __future__ import annotations

import json

from modelyard.engines import prometheus_text
from modelyard.engines.contract import EngineMetrics, Progress

# What `read_own_metrics` finds on every one of them.
OWN_METRICS = frozenset(
    {"running", "waiting", "work_done", "prompt_tokens", "generated_tokens", "kv_used_ratio"},
)


def own_environ(folder: str) -> dict[str, str]:
    """The whole environment of one, running in `folder`: nothing of ours is inherited."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "LANG": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def read_own_progress(line: str) -> Progress | None:
    """From a line of the log: `progress {"stage": ..., "done": ..., "total": ...}`; None for any other."""
    kind, _, values = line.partition(" ")
    if kind != "progress":
        return None
    try:
        told = json.loads(values)
        return Progress(stage=str(told["stage"]), fraction=min(1.0, max(0.0, told["done"] / told["total"])))
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


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
