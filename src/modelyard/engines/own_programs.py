"""What is the same for the engine programs that we ship: how they are started, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.engines import prometheus_text
from modelyard.engines.contract import Addresses, EngineMetrics, Installed, LaunchSpec, Probes, Progress
from modelyard.records.plan import ReplicaPlan

# What `read_own_metrics` finds on every one of them.
OWN_METRICS = frozenset(
    {"running", "waiting", "work_done", "prompt_tokens", "generated_tokens", "kv_used_ratio"},
)


def own_launch(
    program: Path,
    replica: ReplicaPlan,
    install: Installed,
    net: Addresses,
    config: Mapping[str, Any],
    effective: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    sockets: tuple[str, ...] = (),
) -> LaunchSpec:
    """How `program` is started: on `config`, with the model and the address added, in a file of the launch's folder.
    `environ` is added to what they all get; `sockets` are reserved in the folder, so that they go with the launch even
    where every process of it was killed."""
    name = f"{program.stem}.json"
    whole = {**config, "model_path": replica.artifact.path, "address": net.listen.removeprefix("http://")}
    return LaunchSpec(
        argv=(install.python, str(program), "--config", f"{net.folder}/{name}"),
        environ={**own_environ(net.folder), **(environ or {})},
        cwd=net.folder,
        files={name: json.dumps(whole, indent=1, sort_keys=True), **dict.fromkeys(sockets, "")},
        address=net.listen,
        probes=Probes(health_path="/health", metrics_path="/metrics"),
        effective=dict(effective),
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
