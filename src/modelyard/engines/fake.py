"""FakeEngine as an engine: everything around a model can be run, tried and broken without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from modelyard import __version__
from modelyard.engines.contract import (
    Addresses,
    Capabilities,
    EngineMetrics,
    ExitReport,
    Failure,
    Installed,
    LaunchSpec,
    Probes,
    Progress,
    Requirements,
)
from modelyard.engines.own_programs import OWN_METRICS, read_own_metrics
from modelyard.records.plan import ReplicaPlan

PROGRAM = Path(__file__).parents[1] / "testing" / "fake_engine.py"
CONFIG_NAME = "fake_engine.json"
_BAD_USAGE = 2
_KILLED = 9
# How the `error:` line begins -> (kind, fix); each is found again at the next start.
_NAMED_FAILURES: dict[str, tuple[Literal["model", "does_not_fit"], str]] = {
    "no such file": ("model", "check that the model's files are where the plan says"),
    "the model is damaged": ("model", "fetch the model again"),
    "does not fit": ("does_not_fit", "lower the context or the number of sequences, or free memory"),
}


class FakeAdapter:
    """A replica's settings are the FakeEngine's knobs (testing.fake_knobs.Knobs), by the same names."""

    name = "fake"
    capabilities = Capabilities(
        formats=frozenset({"fake"}),
        architectures=frozenset({"fake"}),
        endpoints=frozenset({"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"}),
        continues_chat=True,
        unix_socket=True,
        structured_output=True,
        cached_token_usage=True,
        drains_on_terminate=False,
        cache_salt=True,
        metrics=OWN_METRICS,
        load_progress=True,
    )
    requirements = Requirements(
        packages=(), version=__version__, download_bytes=0, installed_bytes=0, import_check="asyncio"
    )

    def launch(self, replica: ReplicaPlan, install: Installed, net: Addresses) -> LaunchSpec:
        """Knobs that the plan does not set keep FakeEngine's own, harmless values; one that does not exist ends the
        engine with a permanent failure."""
        effective = {
            **{setting.name: setting.value for setting in replica.settings},
            "served_name": replica.served_name,
            "context_tokens": replica.context_tokens,
        }
        config = {**effective, "address": net.listen.removeprefix("http://")}
        return LaunchSpec(
            argv=(install.python, "-I", "-S", str(PROGRAM), "--config", f"{net.folder}/{CONFIG_NAME}"),
            environ={"LANG": "C.UTF-8"},
            cwd=net.folder,
            files={CONFIG_NAME: json.dumps(config, indent=1, sort_keys=True)},
            address=net.listen,
            probes=Probes(health_path="/health", metrics_path="/metrics"),
            effective=effective,
        )

    def read_progress(self, line: str) -> Progress | None:
        kind, _, values = line.partition(" ")
        if kind != "progress":
            return None
        try:
            told = json.loads(values)
            return Progress(stage=str(told["stage"]), fraction=float(told["fraction"]))
        except (ValueError, KeyError, TypeError):
            return None

    def read_metrics(self, text: str) -> EngineMetrics:
        return read_own_metrics(text)

    def explain_failure(self, exit: ExitReport) -> Failure:
        error = _last_error(exit.tail)
        if exit.out_of_memory:
            fix = "lower the context or the number of sequences, or free memory"
            return Failure(kind="out_of_memory", cause="the kernel ended it: out of memory", fix=fix, permanent=False)
        if exit.signal == _KILLED:
            fix = "find out who sent SIGKILL; it is started again"
            return Failure(kind="killed", cause="something killed it (SIGKILL)", fix=fix, permanent=False)
        for beginning, (kind, fix) in _NAMED_FAILURES.items():
            if error.startswith(beginning):
                return Failure(kind=kind, cause=error, fix=fix, permanent=True)
        if exit.code == _BAD_USAGE:
            cause = error or "it refused its settings"
            return Failure(kind="bad_config", cause=cause, fix="correct the setting in the deployment", permanent=True)
        ended = f"signal {exit.signal}" if exit.signal is not None else f"exit code {exit.code}"
        cause = error or next((line for line in reversed(exit.tail) if line.strip()), "no word in its log")
        return Failure(kind="crashed", cause=f"{ended}: {cause}", fix="read the engine's log", permanent=False)


def _last_error(tail: tuple[str, ...]) -> str:
    """The cause in the last `error: cause` line, empty where there is none."""
    errors = [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]
    return errors[-1] if errors else ""
