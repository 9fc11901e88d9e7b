"""A whole yard to kill: started on a state directory of its own, looked at from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import kills_processes
from benchmarks.kills_processes import Process
from benchmarks.subjects import CannotMeasure, free_port
from modelyard.cli.admin import Admin, listening
from modelyard.control import wanted
from modelyard.engines.contract import Installed
from modelyard.engines.registry import engine
from modelyard.node.probes import open_session, read_engine_metrics
from modelyard.node.shim_wire import ShimSpec
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.plan import Artifact, Plan, ReplicaPlan, Setting
from modelyard.records.topology import Policy, Replica, Topology
from modelyard.selftest.bench import until
from modelyard.state import StateDirectory, open_state

READY_WITHIN_S = 180.0
# The default of modelyard.settings.
LEASE_S = 5.0
STOP_WITHIN_S = 100.0


@dataclass(frozen=True)
class RunningEngine:
    """One launch as the operating system shows it. `members` is the engine's whole group, its leader first."""

    replica: str
    launch: str
    shim: Process
    members: tuple[Process, ...]

    @property
    def leader(self) -> Process:
        return self.members[0]


class KilledYard:
    """A yard that may be killed and started again. `deployment` is the public name that it serves."""

    def __init__(self, state: StateDirectory, deployment: str, port: int, lease_s: float = LEASE_S) -> None:
        self.state, self.deployment, self.port, self.lease_s = state, deployment, port, lease_s
        self.key = self.engine_name = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        found = listening(self.state)
        if found is None:
            raise CannotMeasure("the yard is not running")
        return found.pid

    def start(self) -> None:
        """Raises CannotMeasure where it does not listen."""
        outcome, told = os.pipe()
        argv = [sys.executable, "-I", "-m", "modelyard.yard", "--port", str(self.port), "--outcome-fd", str(told)]
        with (self.state.logs / "yard.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[told],
                start_new_session=True,
                env={
                    **os.environ,
                    "MODELYARD_STATE": str(self.state.root),
                    "MODELYARD_LEASE_S": str(self.lease_s),
                },
            )
        os.close(told)
        with os.fdopen(outcome, "rb") as pipe:
            line = pipe.readline()
        if b'"listening/' not in line:
            raise CannotMeasure(f"the yard does not start: {line.decode()}")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """As `modelyard down` does it."""
        if listening(self.state) is not None:
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_WITHIN_S
            while listening(self.state) is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            if listening(self.state) is not None:
                self.kill()
        self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_WITHIN_S)
            self._process = None

    # What control says.

    async def admin(self, method: str, path: str, body: object = None) -> Any:
        return await Admin(self.state).call(method, path, dict[str, Any], body)

    async def make_key(self) -> None:
        self.key = (await self.admin("POST", "/keys", {"name": "campaign"}))["key"]
        self.engine_name = (await self.view())["replicas"][0]["engine"]

    async def view(self) -> dict[str, Any]:
        return await self.admin("GET", f"/deployments/{self.deployment}")

    async def ready(self, within_s: float = READY_WITHIN_S) -> float:
        """Seconds until every replica is ready and routed, by control's word and by the topology. Raises CannotMeasure
        where that does not come."""
        took_s = await until(self._is_ready, within_s)
        if took_s is None:
            raise CannotMeasure(f"not ready within {within_s:g} s: {await self.view()}")
        return took_s

    async def _is_ready(self) -> bool:
        view = await self.view()
        launches = {replica["name"]: replica["launch"] for replica in view["replicas"]}
        are_ready = all(replica["phase"] == "ready" and replica["routed"] for replica in view["replicas"])
        return are_ready and launches == {one.name: one.launch for one in self.routed()}

    async def restart_replicas(self) -> float:
        """As an operator does it; a new history of starts begins. The seconds from the last launch to its route."""
        await self.admin("POST", f"/deployments/{self.deployment}/restart")
        await self.ready()
        steps = (await self.view())["steps"]
        at = {(step["kind"], step["replica"]): step["at"] for step in steps}
        return max(at["route", one.name] - at["launch", one.name] for one in self.routed())

    # What the gateway reads, and what runs.

    def routed(self) -> tuple[Replica, ...]:
        topology = decode(self.state.topology.read_bytes(), Topology)
        return next((one.replicas for one in topology.deployments if one.name == self.deployment), ())

    def processes(self) -> frozenset[Process]:
        return kills_processes.of_state(self.state.root, self.pid)

    def child(self, role: str) -> Process:
        """Yard's child for a role: control or gateway."""
        words = f" -I -m modelyard.{role} "
        found = [one for one in self.processes() if words in f"{one.words} "]
        if len(found) != 1:
            raise CannotMeasure(f"{len(found)} processes are {role}")
        return found[0]

    def engines(self) -> list[RunningEngine]:
        """Every engine that runs under a shim of this state directory."""
        found: list[RunningEngine] = []
        for path in sorted(self.state.launches.glob("*.json")):
            try:
                spec = decode(path.read_bytes(), ShimSpec)
            except (UnreadableRecord, FileNotFoundError):
                continue
            processes = self.processes()
            shims = [one for one in processes if "modelyard.node.shim" in one.words and _leads(one.pid)]
            shim = next((one for one in shims if one.words.endswith(str(path))), None)
            if shim is not None and (members := _engine_of(shim, processes)):
                found.append(RunningEngine(spec.replica, spec.launch, shim, members))
        return found

    async def running_requests(self) -> float:
        """What the engines themselves say they run and queue; only for engines that answer."""
        total = 0.0
        for path in self.state.launches.glob("*.json"):
            with contextlib.suppress(UnreadableRecord, FileNotFoundError):
                total += await _running(decode(path.read_bytes(), ShimSpec), self.engine_name)
        return total


async def _running(shim: ShimSpec, engine_name: str) -> float:
    async with open_session(shim.spec) as session:
        seen = await read_engine_metrics(session, shim.spec, engine(engine_name).read_metrics)
    return (seen.running or 0.0) + (seen.waiting or 0.0) if seen is not None else 0.0


def _leads(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid) == pid
    return False


def _engine_of(shim: Process, processes: frozenset[Process]) -> tuple[Process, ...]:
    """The engine's group below a shim without its guard, the leader first; empty where there is none."""
    below = kills_processes.tree(shim.pid) - {shim.pid}
    members = [one for one in processes if one.pid in below and "modelyard.node.shim" not in one.words]
    return tuple(sorted(members, key=lambda one: not _leads(one.pid)))


def fake_wanted(replicas: int, knobs: dict[str, float | int | str | bool]) -> wanted.Wanted:
    """A deployment of FakeEngines that look hung after three seconds without progress."""
    artifact = Artifact(name="fake", format="fake", path="/dev/null", sha256="0" * 64, size_bytes=0, lineage="")
    settings = tuple(Setting(name=name, value=value, reason="") for name, value in knobs.items())
    plans = tuple(
        ReplicaPlan(
            name=f"fake-{number}",
            engine="fake",
            served_name="fake",
            artifact=artifact,
            max_in_flight=4,
            context_tokens=8192,
            settings=settings,
            hang_timeout_s=3.0,
        )
        for number in range(replicas)
    )
    return wanted.Wanted(
        name="fake",
        plan=Plan(deployment="fake", replicas=plans),
        install=Installed(engine="fake", version="0", python=sys.executable, root="/", lock_sha256=""),
        probes=(),
        created_at=int(time.time()),
        policy=Policy(queue_timeout_s=10.0, first_byte_timeout_s=60.0, stall_timeout_s=60.0),
    )


@contextlib.contextmanager
def fake_yard(
    folder: Path, replicas: int, knobs: dict[str, float | int | str | bool], lease_s: float = LEASE_S
) -> Generator[KilledYard]:
    """A yard that serves FakeEngines; ended with the block."""
    state = open_state(folder)
    wanted.save(state, fake_wanted(replicas, knobs))
    yard = KilledYard(state, "fake", free_port(), lease_s)
    yard.start()
    try:
        yield yard
    finally:
        yard.stop()


@contextlib.contextmanager
def real_yard(folder: Path, cache: Path, model: str) -> Generator[KilledYard]:
    """A yard that `modelyard up` made for a model of the catalogue. Installed engines and fetched models of the state
    directory `cache` are used in place; everything else is fresh."""
    folder.mkdir(mode=0o700)
    for name in ("environments", "store"):
        if (cache / name).is_dir():
            (folder / name).symlink_to(cache / name)
    state, port = open_state(folder), free_port()
    command = [sys.executable, "-m", "modelyard", "up", model, "--detach", "--port", str(port)]
    yard = KilledYard(state, model, port)
    try:
        done = subprocess.run(
            command, env={**os.environ, "MODELYARD_STATE": str(folder)}, capture_output=True, text=True, timeout=900
        )
        if done.returncode != 0:
            raise CannotMeasure(f"modelyard up ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        yield yard
    finally:
        yard.stop()
