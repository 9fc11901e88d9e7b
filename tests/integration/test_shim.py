"""Real shims with real children: what they promise about processes, logs and connections."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from modelyard.engines.contract import ExitReport, LaunchSpec, Probes
from modelyard.node import shims
from modelyard.node.lease import Lease
from modelyard.node.shim_wire import Exited, LogLine, ShimSpec
from modelyard.node.shims import ShimConnection, ShimListener
from modelyard.state import StateDirectory

Eventually = Callable[..., Awaitable[object]]
FOREVER = "import time, signal; print('up', flush=True); time.sleep(600)"


class Yard:
    """What yard and control do around shims: owns the rendezvous and the lease, adopts who dials."""

    def __init__(self, state: StateDirectory) -> None:
        self.state = state
        self.rendezvous = state.sockets / "shims.sock"
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(self.rendezvous))
        self.listening.listen(64)
        self.lease = Lease(state.lease)
        self.lease.renew()
        self.lease_s = 60.0
        self.ended: list[asyncio.Future[int]] = []
        self.connected: asyncio.Queue[ShimConnection] = asyncio.Queue()

    def spec(self, program: str, **changes: object) -> ShimSpec:
        launch = str(len(self.ended) + 1)
        settings: dict[str, object] = {
            "replica": "r0",
            "launch": launch,
            "folder": str(self.state.launches / f"r0-{launch}"),
            "spec": self.launch_spec(program),
            "rendezvous": str(self.rendezvous),
            "lease": str(self.state.lease),
            "lease_s": self.lease_s,
            "log_path": str(self.state.logs / "r0.log"),
        }
        return ShimSpec(**(settings | changes))  # type: ignore[arg-type]

    def launch_spec(self, program: str, **files: str) -> LaunchSpec:
        return LaunchSpec(
            argv=(sys.executable, "-c", program),
            environ={"PATH": "/usr/bin:/bin", "CANARY": "engine"},
            cwd=str(self.state.root),
            files=files,
            address=f"unix:{self.state.sockets / 'engine.sock'}",
            probes=Probes(health_path="/health", metrics_path=None),
            effective={},
        )

    def spawn(self, program: str, **changes: object) -> asyncio.Future[int]:
        self.ended.append(shims.spawn(self.spec(program, **changes), self.state))
        return self.ended[-1]

    @asynccontextmanager
    async def control(self) -> AsyncIterator[None]:
        """A control that lives as long as the block; when it dies its connections break, as with kill -9."""

        async def adopt(connection: ShimConnection) -> None:
            self.connected.put_nowait(connection)
            await asyncio.Event().wait()

        listening = socket.socket(fileno=os.dup(self.listening.fileno()))
        accepting = asyncio.create_task(ShimListener(listening).accept_forever(adopt))
        yield
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listening.close()


@pytest.fixture
async def yard(state: StateDirectory) -> AsyncIterator[Yard]:
    yard = Yard(state)
    yield yard
    yard.lease.end()
    yard.lease.close()
    yard.listening.close()
    for ended in yard.ended:
        if not ended.done():
            # The lease is looked at when it would have run out: an end needs no such patience here.
            for pid in processes_of(str(state.launches)):
                os.kill(pid, signal.SIGKILL)
            await ended


def processes_of(mark: str) -> list[int]:
    """Living processes whose command line holds `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in arguments and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


async def exit_of(connection: ShimConnection) -> tuple[Exited, list[str]]:
    lines = []
    async for event in connection.events():
        if isinstance(event, Exited):
            return event, lines
        lines.append(event.text)
    raise AssertionError("the connection ended without Exited")


async def first_line(connection: ShimConnection) -> str:
    async for event in connection.events():
        assert isinstance(event, LogLine)
        return event.text
    raise AssertionError("no line came")


async def test_an_engine_s_output_and_exit_code_reach_control(yard: Yard) -> None:
    async with yard.control():
        ended = yard.spawn("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)")
        connection = await yard.connected.get()
        exited, lines = await exit_of(connection)
        assert exited.report == ExitReport(code=3, signal=None, out_of_memory=False, tail=tuple(lines))
        assert sorted(lines) == ["one", "two"]
        assert not exited.asked
        await connection.release()
        assert await ended == 0
    assert list(yard.state.launches.iterdir()) == []
