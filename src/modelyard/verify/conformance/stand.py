"""The test stand: launches of one engine through real shims, as control makes them, and nothing else of a yard."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.engines.contract import Addresses, ExitReport, Failure, LaunchSpec, Progress
from modelyard.node import launch_files, shims
from modelyard.node.lease import RENEW_EVERY_S, Lease
from modelyard.node.shim_wire import Exited, LogLine, ShimSpec
from modelyard.node.shims import ShimConnection, ShimListener, ShimLost
from modelyard.records.plan import ReplicaPlan
from modelyard.state import StateDirectory, open_state
from modelyard.verify.conformance.processes import Process, engine_processes, is_alive
from modelyard.verify.conformance.subject import Subject

KEPT_LINES = 2000
# Where this process is killed, every engine of the stand ends by itself in this time.
LEASE_S = 10.0
_GONE_WITHIN_S = 5.0


@dataclass(slots=True, eq=False)
class Launched:
    """One launch. `exited` is done when nothing of the engine is left; `failure` is then what its adapter says."""

    number: int
    spec: LaunchSpec
    folder: Path
    began_at: float
    shim_ended: asyncio.Future[int]
    connected: asyncio.Future[ShimConnection]
    exited: asyncio.Future[Exited]
    lines: deque[str] = field(default_factory=lambda: deque[str](maxlen=KEPT_LINES))
    progress: list[Progress] = field(default_factory=list[Progress])
    failure: Failure | None = None
    seen: dict[tuple[int, int], Process] = field(default_factory=dict[tuple[int, int], Process])

    @property
    def has_ended(self) -> bool:
        return self.exited.done()

    async def processes(self) -> tuple[Process, ...]:
        """The engine's processes now; each is remembered, for it must be gone in the end."""
        connection = await self._connection()
        found = engine_processes(connection.hello.shim_pid) if connection is not None else ()
        self.seen |= {(process.pid, process.started): process for process in found}
        return found

    async def ended(self) -> Exited:
        return await asyncio.shield(self.exited)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the engine's group, SIGKILL after `grace_s`; nothing where it has ended."""
        if (connection := await self._connection()) is not None:
            with contextlib.suppress(ShimLost):
                await connection.stop(grace_s)

    async def kill(self) -> None:
        """SIGKILL to everything of the engine; returns when it is gone."""
        if (connection := await self._connection()) is not None:
            with contextlib.suppress(ShimLost):
                await connection.kill()
        await self.ended()

    async def leftovers(self) -> list[str]:
        """What the launch left behind, after its end: processes, its socket, its folder, its shim."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE_WITHIN_S):
                await asyncio.shield(self.shim_ended)
        found = [f"process {process.pid} ({process})" for process in self.seen.values() if is_alive(process)]
        path = Path(self.spec.address.removeprefix("unix:"))
        if self.spec.address.startswith("unix:") and path.exists():
            found.append(f"the socket {path.name}")
        if self.folder.exists():
            found += [f"the file {file.name} in its folder" for file in sorted(self.folder.iterdir())]
        if self.spec.scratch:
            found += [f"its scratch folder {self.spec.scratch}"] if Path(self.spec.scratch).exists() else []
            found += [f"shared memory {path}" for path in launch_files.shared_memory(self.spec.scratch)]
        if not self.shim_ended.done():
            found.append("its shim")
        return found

    async def _connection(self) -> ShimConnection | None:
        """The shim's, once it has dialled; None where the launch ended without, or has ended."""
        await asyncio.wait({self.connected, self.exited}, return_when=asyncio.FIRST_COMPLETED)
        return None if self.exited.done() else self.connected.result()


class Stand:
    """Starts launches of `subject` one after the other. Its state directory is its own and goes with it."""

    def __init__(self, subject: Subject, state: StateDirectory, rendezvous: socket.socket) -> None:
        self.launches: list[Launched] = []
        self._subject, self._state, self._rendezvous = subject, state, rendezvous

    def launch(
        self,
        replica: ReplicaPlan | None = None,
        changed: Callable[[LaunchSpec], LaunchSpec] = lambda spec: spec,
    ) -> Launched:
        """Start the subject's replica, or another one in its place. What the adapter itself refuses, it raises."""
        number, loop = len(self.launches) + 1, asyncio.get_running_loop()
        replica = replica or self._subject.replica
        folder = self._state.launches / f"{replica.name}-{number}"
        where = Addresses(listen=self._listen(number), folder=str(folder))
        spec = changed(self._subject.engine.launch(replica, self._subject.install, where))
        shim = ShimSpec(
            replica=replica.name,
            launch=str(number),
            folder=str(folder),
            spec=spec,
            rendezvous=str(self._state.rendezvous),
            lease=str(self._state.lease),
            log_path=str(self._state.logs / f"{replica.name}.log"),
            lease_s=LEASE_S,
        )
        launched = Launched(
            number,
            spec,
            folder,
            loop.time(),
            shims.spawn(shim, self._state),
            loop.create_future(),
            loop.create_future(),
        )
        launched.shim_ended.add_done_callback(lambda _: self._over(launched, _lost()))
        self.launches.append(launched)
        return launched

    async def end(self) -> None:
        """Kill what still runs."""
        for launched in self.launches:
            if not launched.has_ended:
                await launched.kill()

    def _listen(self, number: int) -> str:
        if self._subject.engine.capabilities.unix_socket:
            return f"unix:{self._state.sockets / f'engine-{number}.sock'}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{free.getsockname()[1]}"

    async def serve(self) -> None:
        """Answer shims and renew the lease, until cancelled."""
        with Lease(self._state.lease) as lease:
            lease.renew()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(ShimListener(self._rendezvous).accept_forever(self._adopt))
                while True:
                    lease.renew()
                    await asyncio.sleep(RENEW_EVERY_S)

    async def _adopt(self, connection: ShimConnection) -> None:
        launched = self.launches[int(connection.hello.launch) - 1]
        if not launched.connected.done():
            launched.connected.set_result(connection)
        async for record in connection.events():
            if isinstance(record, LogLine):
                self._hear(launched, record.text)
            else:
                with contextlib.suppress(ShimLost):
                    await connection.release()
                self._over(launched, record)

    def _hear(self, launched: Launched, line: str) -> None:
        launched.lines.append(line)
        if (progress := self._subject.engine.read_progress(line)) is not None:
            launched.progress.append(progress)

    def _over(self, launched: Launched, exited: Exited) -> None:
        if not launched.exited.done():
            launched.failure = self._subject.engine.explain_failure(exited.report)
            launched.exited.set_result(exited)


@asynccontextmanager
async def open_stand(subject: Subject) -> AsyncGenerator[Stand]:
    """A stand; when the block ends, however it ends, nothing that it started is left."""
    root = Path(tempfile.mkdtemp(prefix="modelyard-"))
    state = open_state(root)
    rendezvous = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    rendezvous.bind(str(state.rendezvous))
    rendezvous.listen(8)
    stand = Stand(subject, state, rendezvous)
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(stand.serve())
            try:
                yield stand
            finally:
                await stand.end()
                await asyncio.gather(*(launched.leftovers() for launched in stand.launches))
                serving.cancel()
    finally:
        rendezvous.close()
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(state.sockets, ignore_errors=True)


def _lost() -> Exited:
    """What is told of an engine whose shim was killed, or could not even prepare the launch."""
    return Exited(report=ExitReport(code=None, signal=9, out_of_memory=False, tail=()), asked=False)
