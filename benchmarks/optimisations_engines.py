"""Engines as a deployment would start them, by planner and adapter, but directly under us: no yard, no gateway."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from rich.console import Console

from benchmarks import drafts
from benchmarks.optimisations_cases import CONTEXT_TOKENS, Draft, EngineName, Variant
from benchmarks.subjects import CannotMeasure, Subject, child, free_port
from modelyard.cli.prepare import prepare
from modelyard.cli.seven_steps import SevenSteps
from modelyard.control.wanted import Wanted
from modelyard.engines.contract import Addresses, LaunchSpec
from modelyard.engines.registry import engine
from modelyard.errors import ModelyardError
from modelyard.records.plan import ReplicaPlan, Setting
from modelyard.settings import Settings
from modelyard.spec.deployment import Deployment, Limits
from modelyard.state import StateDirectory

SERVED_NAME = "measured"


@dataclass(frozen=True)
class Bench:
    """Where engines and models are, and which model is served. `drafts` keeps the draft models that were made."""

    state: StateDirectory
    settings: Settings
    model: str
    drafts: Path

    @contextlib.contextmanager
    def running(self, name: EngineName, variant: Variant, folder: Path) -> Generator[Subject]:
        """The engine, ready. Raises CannotMeasure with the reason, in the planner's or in the engine's own words."""
        try:
            wanted = self._prepared(name, variant)
            replica = self._with_draft(wanted.plan.replicas[0], wanted.install.python, variant.draft)
            folder.mkdir()
            adapter = engine(replica.engine)
            local = f"unix:{folder / 's'}" if adapter.capabilities.unix_socket else f"http://127.0.0.1:{free_port()}"
            spec = adapter.launch(replica, wanted.install, Addresses(listen=local, folder=str(folder)))
        except ModelyardError as error:
            raise CannotMeasure(f"{error}: {error.hint}" if error.hint else str(error)) from error
        _write_files(spec, folder)
        log = folder / "log"
        with child(spec.argv, log, spec.environ, cwd=spec.cwd) as process:
            deadline = time.monotonic() + replica.startup_timeout_s
            while not answers(spec):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CannotMeasure(f"the engine does not get ready: {last_words(log)}")
                time.sleep(0.2)
            yield Subject(name, spec.address, process.pid, replica.served_name)

    def _prepared(self, name: EngineName, variant: Variant) -> Wanted:
        wanted = self._deployed(name, variant, kv_cache=None)
        if variant.kv_share == 1:
            return wanted
        planned = int(wanted.plan.replicas[0].setting("kv_cache_bytes"))
        return self._deployed(name, variant, kv_cache=int(planned * variant.kv_share))

    def _deployed(self, name: EngineName, variant: Variant, kv_cache: int | None) -> Wanted:
        limits = Limits(context_tokens=CONTEXT_TOKENS, max_in_flight=variant.max_in_flight, kv_cache=kv_cache)
        deployment = Deployment(
            name=SERVED_NAME, model=self.model, engine=name, limits=limits, settings=dict(variant.settings)
        )
        console = Console(stderr=True, quiet=not sys.stderr.isatty())
        return prepare(deployment, self.state, self.settings, SevenSteps(SERVED_NAME, console, as_json=False))

    def _with_draft(self, replica: ReplicaPlan, python: str, draft: Draft | None) -> ReplicaPlan:
        if draft is None:
            return replica
        path = drafts.made(Path(replica.artifact.path), self.drafts)
        if draft.export:
            export = [python, str(Path(__file__).parent / draft.export), str(path)]
            done = subprocess.run(export, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
            if done.returncode != 0:
                raise CannotMeasure(f"the draft model cannot be exported: {done.stderr.strip().splitlines()[-1]}")
            path = path.parent
        setting = Setting(name=draft.setting, value=draft.value.format(path=path), reason="measured beside none")
        others = tuple(one for one in replica.settings if one.name != setting.name)
        return msgspec.structs.replace(replica, settings=(*others, setting))


def _write_files(spec: LaunchSpec, folder: Path) -> None:
    for name, content in spec.files.items():
        (folder / name).write_text(content)
    if scratch := getattr(spec, "scratch", ""):
        Path(scratch).mkdir(exist_ok=True)


def answers(spec: LaunchSpec) -> bool:
    """Whether its health path says 200."""
    try:
        with contextlib.closing(_connection(spec.address)) as connection:
            connection.request("GET", spec.probes.health_path)
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def _connection(address: str) -> http.client.HTTPConnection:
    if not address.startswith("unix:"):
        return http.client.HTTPConnection(urlsplit(address).netloc, timeout=5)
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    connection.sock.connect(address.removeprefix("unix:"))
    return connection


def last_words(log: Path) -> str:
    """The last line that says something about an error, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower()]
    return (wrong or lines or ["no word in its log"])[-1][:500]
