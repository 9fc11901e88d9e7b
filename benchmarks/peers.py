"""Other gateways beside ours: how each is started, and why so.

Each is configured in its own favour: no request log, the cheapest routing policy, no database, no retries that could
hide a failure. What it checks of a key stands in `configured`; so does whatever ours does and it does not. Each is a
process (or more) with nothing of our environment: no secrets to lose, no proxy to be told of."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import peer_environments
from benchmarks.subjects import MODEL, CannotMeasure, Subject, Upstream, child, free_port, wait_until_it_answers


@dataclass(frozen=True, slots=True)
class Place:
    """What a start depends on. `spare_port` is for a listener that a peer insists on."""

    programs: Path
    folder: Path
    upstream: str
    port: int
    spare_port: int
    key: str


@dataclass(frozen=True, slots=True)
class Start:
    """A command line, and what it needs: files in `Place.folder` and variables."""

    argv: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict[str, str])
    environ: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Peer:
    """`share` of the common load is what it gets, so that a round ends in minutes: CPU per request does not depend on
    how many there are. `rewritten`: it decodes every answer and encodes it again."""

    name: str
    configured: str
    start: Callable[[Place], Start]
    rewritten: bool = False
    share: float = 1.0
    ready_within_s: float = 60.0


def _vllm_router(place: Place) -> Start:
    argv = ["--host", "127.0.0.1", "--port", str(place.port), "--worker-urls", place.upstream]
    argv += ["--policy", "round_robin", "--log-level", "error", "--disable-retries"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.spare_port)]
    return Start((str(place.programs / "vllm-router"), *argv))


def _smg(place: Place) -> Start:
    argv = ["launch", "--host", "127.0.0.1", "--port", str(place.port), "--worker-urls", place.upstream]
    argv += ["--policy", "round_robin", "--log-level", "error", "--disable-retries", "--api-key", place.key]
    argv += ["--disable-load-monitoring", "--disable-tokenizer-autoload"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.spare_port)]
    return Start((str(place.programs / "smg"), *argv))


def _litellm(place: Place) -> Start:
    engine = {"model": f"openai/{MODEL}", "api_base": f"{place.upstream}/v1", "api_key": "none"}
    configuration = {
        "model_list": [{"model_name": MODEL, "litellm_params": engine}],
        "litellm_settings": {"set_verbose": False, "request_timeout": 600, "num_retries": 0, "telemetry": False},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", "background_health_checks": False},
    }
    argv = ["--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]
    argv += ["--config", str(place.folder / "litellm.json")]
    environ = {
        "LITELLM_MASTER_KEY": place.key,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return Start(
        (str(place.programs / "litellm"), *argv),
        files={"litellm.json": json.dumps(configuration, indent=1)},  # JSON is YAML too
        environ=environ,
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "vllm-router",
            "0.1.17, round_robin, log level error, retries off; no key, since it can only ask a URL about each one",
            _vllm_router,
        ),
        Peer(
            "smg",
            "1.13.0, HTTP worker, round_robin, log level error, retries and load monitoring off, with an API key",
            _smg,
        ),
        Peer(
            "litellm",
            "1.108.7, 1 worker, LITELLM_MODE=PRODUCTION, log level ERROR, no callbacks, no retries, the master key, no"
            " database (virtual keys, budgets and spend logs would need one)",
            _litellm,
            rewritten=True,
            share=0.02,
            ready_within_s=240.0,
        ),
    )
}


@contextlib.contextmanager
def running(peer: Peer, folder: Path, upstream: Upstream) -> Generator[Subject]:
    """The peer, installed where it was not, answering. Raises CannotMeasure with the reason."""
    own = folder / peer.name
    own.mkdir()
    key = f"sk-{secrets.token_urlsafe(24)}"
    place = Place(peer_environments.programs(peer.name), own, upstream.url, free_port(), free_port(), key)
    start = peer.start(place)
    for name, content in start.files.items():
        (own / name).write_text(content)
    environ = {"PATH": f"{place.programs}:/usr/bin:/bin", "HOME": str(own), "LANG": "C.UTF-8", **start.environ}
    log = own / "log"
    with child(start.argv, log, environ) as process:
        subject = Subject(
            peer.name,
            f"http://127.0.0.1:{place.port}",
            process.pid,
            key=key,
            health=None,
            rewritten=peer.rewritten,
            share=peer.share,
        )
        try:
            wait_until_it_answers(subject, process, log, peer.ready_within_s)
        except CannotMeasure as error:
            raise CannotMeasure(in_a_line(error)) from error
        yield subject


def in_a_line(error: CannotMeasure) -> str:
    """What it says first, and the last line of the log that follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0].partition(';')[0]}: {lines[-1]}"
