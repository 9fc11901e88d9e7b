"""A yard as a real process, with FakeEngines behind it: what operators run, without a model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from modelyard.control import wanted as desired
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.control.wanted import Wanted
from modelyard.engines.contract import Installed
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.observe.journal import read_journal
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.journal import RequestRecord
from modelyard.records.listening import Listening
from modelyard.records.plan import Artifact, Plan, ReplicaPlan, Setting
from modelyard.records.topology import Deployment, Policy, Topology
from modelyard.state import StateDirectory

T = TypeVar("T")
PROBE = KnowledgeProbe(kind="chat", prompt="What is the capital of Japan?", expected="Tokyo", margin=0.5)
STARTS_WITHIN_S = 60.0
CHAT = "/chat/completions"


def fake_wanted(
    name: str = "small",
    *,
    replicas: int = 1,
    max_in_flight: int = 16,
    startup_timeout_s: float = 60.0,
    drain_timeout_s: float = 30.0,
    hang_timeout_s: float = 20.0,
    **knobs: str | int | float | bool,
) -> Wanted:
    """A deployment of FakeEngines with these knobs, as the command line would have planned it."""
    plans = tuple(
        ReplicaPlan(
            name=f"{name}-{number}",
            engine="fake",
            served_name=name,
            artifact=Artifact(name="fake", format="fake", path="/", sha256="0" * 64, size_bytes=0, lineage="made up"),
            max_in_flight=max_in_flight,
            context_tokens=8192,
            settings=tuple(Setting(name=knob, value=value, reason="") for knob, value in knobs.items()),
            startup_timeout_s=startup_timeout_s,
            drain_timeout_s=drain_timeout_s,
            hang_timeout_s=hang_timeout_s,
        )
        for number in range(replicas)
    )
    return Wanted(
        name=name,
        plan=Plan(deployment=name, replicas=plans),
        install=Installed(engine="fake", version="0", python=sys.executable, root="/", lock_sha256=""),
        probes=(PROBE,),
        created_at=1,
        policy=Policy(first_byte_timeout_s=60.0, stall_timeout_s=60.0),
    )


@dataclass
class RunningYard:
    """`process` is yard; what it says of itself stands in `listening`."""

    state: StateDirectory
    process: asyncio.subprocess.Process
    listening: Listening
    http: aiohttp.ClientSession
    key: str = ""

    # The admin API.

    async def admin(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of one call with the admin key; while nobody answers, again."""
        headers = {"authorization": f"Bearer {self.state.admin_key.read_text().strip()}"}
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                async with self.http.request(
                    method, f"{self.listening.admin}{path}", headers=headers, json=body
                ) as answer:
                    return answer.status, msgspec.json.decode(await answer.read())
            except aiohttp.ClientConnectionError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def view(self, name: str = "small") -> DeploymentView:
        status, value = await self.admin("GET", f"/deployments/{name}")
        assert status == 200, value
        return msgspec.convert(value, DeploymentView)

    async def replica(self, name: str = "small") -> ReplicaView:
        return (await self.view(name)).replicas[0]

    async def want(self, wanted: Wanted) -> None:
        """Save and reload a deployment."""
        desired.save(self.state, wanted)
        status, value = await self.admin("POST", f"/deployments/{wanted.name}/reload")
        assert status == 200, value

    async def open(self, name: str = "small") -> DeploymentView:
        """Wait until its route is open; fails at once where it has failed for good."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not (view := await self.view(name)).open:
            assert [one.phase for one in view.replicas] != ["failed"], view
            assert time.monotonic() < deadline, view
            await asyncio.sleep(0.02)
        await self.gateway_follows()
        return view

    async def gateway_follows(self) -> None:
        """Until the gateway has read the topology as it is now: it looks ten times a second."""
        await asyncio.sleep(0.3)

    async def make_key(self) -> str:
        status, made = await self.admin("POST", "/keys", {"name": "test"})
        assert status == 200, made
        self.key = made["key"]
        return self.key

    # Clients.

    def chat(self, text: str = "hello", *, model: str = "small", **fields: Any) -> Any:
        """A chat request as aiohttp's context manager."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
        headers = {"authorization": f"Bearer {self.key}"}
        return self.http.post(f"{self.listening.url}{CHAT}", json=body, headers=headers)

    async def ask(self, text: str = "hello", **fields: Any) -> tuple[int, Any]:
        async with self.chat(text, **fields) as answer:
            return answer.status, msgspec.json.decode(await answer.read())

    async def engine(self, method: str, path: str, body: object = None, *, name: str = "small") -> Any:
        """A request to the first replica of a deployment, behind the gateway's back."""
        address = self.route(name).replicas[0].address.removeprefix("unix:")
        async with (
            aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(address)) as session,
            session.request(method, path, json=body) as answer,
        ):
            return msgspec.json.decode(await answer.read())

    async def turn(self, *, name: str = "small", **knobs: object) -> None:
        """Turn knobs of a running FakeEngine."""
        await self.engine("POST", "/fake/knobs", knobs, name=name)

    # Files and processes.

    def topology(self) -> Topology:
        return decode(self.state.topology.read_bytes(), Topology)

    def route(self, name: str = "small") -> Deployment:
        return next(one for one in self.topology().deployments if one.name == name)

    def journal(self) -> tuple[RequestRecord, ...]:
        return read_journal(self.state.journal).records

    def child(self, role: str) -> int:
        """The process of control or the gateway; 0 while there is none."""
        return next((pid for pid in _children(self.process.pid) if f"modelyard.{role}" in command_of(pid)), 0)

    def log(self, name: str) -> str:
        return (self.state.logs / f"{name}.log").read_text()

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), STARTS_WITHIN_S)


@asynccontextmanager
async def running_yard(
    state: StateDirectory,
    *wanted: Wanted,
    options: Iterable[str] = ("--port", "0"),
    pass_fds: Sequence[int] = (),
    **environ: str,
) -> AsyncGenerator[RunningYard]:
    """`python -m modelyard.yard` on `state`, serving `wanted`; whatever happens, nothing of it is left."""
    for one in wanted:
        desired.save(state, one)
    before = state.yard.read_bytes() if state.yard.exists() else b""
    with (state.logs / "yard.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "modelyard.yard", *options),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "MODELYARD_STATE": str(state.root), **environ},
            pass_fds=pass_fds,
        )
    try:
        listening = await _listening(state, process, before)
        # A connection for each request: none is judged by what happened to the one before it.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120), connector=connector) as http:
            yield RunningYard(state, process, listening, http)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        # They would end by themselves when the lease runs out; a test that is over does not wait for it.
        for pid in processes_of(state):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await _all_gone(state)


async def _listening(state: StateDirectory, process: asyncio.subprocess.Process, before: bytes) -> Listening:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, UnreadableRecord):
            if (found := state.yard.read_bytes()) != before:
                return decode(found, Listening)
        assert process.returncode is None, (state.logs / "yard.log").read_text()
        await asyncio.sleep(0.01)
    raise AssertionError("the yard does not listen")


async def _all_gone(state: StateDirectory) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while left := processes_of(state):
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.02)


def processes_of(state: StateDirectory) -> dict[int, str]:
    """Every process whose command line names this state directory: control, gateway, shims, engines."""
    found = {pid: command_of(pid) for pid in _numbers()}
    return {pid: command for pid, command in found.items() if str(state.root) in command and pid != os.getpid()}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def engine_pids(state: StateDirectory) -> list[int]:
    return sorted(pid for pid, command in processes_of(state).items() if "fake_engine.py" in command)


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for pid in _numbers():
        with suppress(OSError, IndexError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(pid)
    return found


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


async def words_of(answer: aiohttp.ClientResponse, heard: Callable[[str], None] = lambda _: None) -> tuple[str, bool]:
    """The text of a stream, and whether it came to its end."""
    text, done = "", False
    with suppress(aiohttp.ClientPayloadError, ConnectionResetError):
        async for line in answer.content:
            done = done or line.startswith(b"data: [DONE]")
            if line.startswith(b"data: {"):
                event = msgspec.json.decode(line[6:])
                for choice in event.get("choices", []):
                    text += choice.get("delta", {}).get("content") or ""
                heard(text)
    return text, done
