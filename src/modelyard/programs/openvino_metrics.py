"""Prometheus text of the OpenVINO engine server. What is not known yet is left out, never written as zero."""

from __future__ import annotations

from typing import Any

_FROM_STATS = (
    ("requests_running", "gauge", "running", "Requests that hold a seat in the engine."),
    ("requests_waiting", "gauge", "waiting", "Requests that wait for a seat or for KV memory."),
    ("steps_total", "counter", "steps", "Finished engine steps; advances during prefill too."),
    ("generation_tokens_total", "counter", "generated", "Tokens generated."),
    ("prompt_tokens_total", "counter", "prompt", "Prompt tokens of requests that started."),
    ("cached_prompt_tokens_total", "counter", "cached", "Prompt tokens restored from the prefix cache."),
    ("requests_cancelled_total", "counter", "cancelled", "Requests whose client went away."),
    ("kv_cache_usage_ratio", "gauge", "kv_usage", "Part of the KV pool held by running requests."),
)


def render_metrics(stats: dict[str, Any], effective: dict[str, Any] | None, step_age_s: float | None) -> str:
    """`stats` as the stepping process last sent them (empty before the first), `effective` once it is ready."""
    lines: list[str] = []
    if effective is not None:
        for name, kind, key, text in _FROM_STATS:
            _series(lines, name, kind, stats.get(key, 0), text)
        _series(lines, "kv_cache_bytes", "gauge", effective["scheduler"]["kv_cache_bytes"], "Size of the KV pool.")
    if step_age_s is not None:
        _series(lines, "last_step_age_seconds", "gauge", round(step_age_s, 3), "Time since the last finished step.")
    _series(lines, "ready", "gauge", int(effective is not None), "1 once the model is loaded.")
    return "\n".join(lines) + "\n"


def _series(lines: list[str], name: str, kind: str, value: float, text: str) -> None:
    full = f"modelyard_engine_{name}"
    lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
