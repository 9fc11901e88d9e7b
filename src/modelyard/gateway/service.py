"""What keeps a worker in step with the world: the topology, the keys, time, and the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from modelyard.errors import UsageError
from modelyard.gateway.admission import Admission
from modelyard.gateway.client import ClientConnection
from modelyard.gateway.connections import Connections
from modelyard.gateway.group import Group
from modelyard.gateway.keyring import KeyLog
from modelyard.gateway.late import LateConnection
from modelyard.gateway.upstream import parse_address
from modelyard.gateway.worker import Worker
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.topology import Deployment, Topology

FOLLOW_INTERVAL_S = 0.1
SWEEP_INTERVAL_S = 0.5
FLUSH_S = 1.0
# A client that works asks again within this time, and is told in the answer that its connection ends.
IDLE_PATIENCE_S = 5.0
LOOK_EVERY_S = 0.1
IDLE_UNDER_PRESSURE_S = 1.0


class Service:
    """A worker and its connections. Everything here runs on one event loop and is owned by it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        # Set, before the first topology, where there are several workers.
        self.group: Group | None = None
        self._connections: Connections[ClientConnection] = Connections(worker.wire)
        self._is_ending = False

    def connection(self) -> ClientConnection | LateConnection:
        """The protocol of a client that has just connected."""
        if self._is_ending:
            return LateConnection()
        return ClientConnection(self.worker, self._connections)

    # What changes from outside.

    def apply(self, topology: Topology) -> None:
        """Take in a new topology; requests in flight keep the seats that they have. Raises UsageError, with nothing
        changed, where an engine's address is none."""
        for deployment in topology.deployments:
            for replica in deployment.replicas:
                parse_address(replica.address)
        wanted = {deployment.name: deployment for deployment in topology.deployments}
        for name in self.worker.admissions.keys() - wanted.keys():
            closed = msgspec.structs.replace(
                self.worker.admissions[name].deployment, open=False, replicas=(), reason="it was removed"
            )
            self._update(name, closed)
            del self.worker.admissions[name]
        for name, deployment in wanted.items():
            self._update(name, deployment)

    def _update(self, name: str, deployment: Deployment) -> None:
        admission = self.worker.admissions.get(name)
        if admission is None:
            admission = Admission(deployment) if self.group is None else self.group.door(deployment)
            self.worker.admissions[name] = admission
        for pool in admission.update(deployment):
            pool.close()

    # Time.

    def sweep(self, late_s: float = 0.0) -> None:
        """Hold everyone to their deadlines, and ourselves to our limits. `late_s` is by how much it comes too late."""
        now = time.monotonic()
        pressure = self.worker.pressure
        pressure.look(late_s)
        for connection in list(self._connections.open):
            if pressure.level:
                connection.let_idle_go(now + IDLE_UNDER_PRESSURE_S)
            if connection.deadline <= now:
                connection.expire()
            elif connection.exchange is not None:
                connection.exchange.check_progress(now)
        for admission in self.worker.admissions.values():
            admission.expire(now)
            for seats in admission.seats.values():
                seats.pool.expire(now)

    async def sweep_forever(self) -> None:
        while True:
            due = time.monotonic() + SWEEP_INTERVAL_S
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.sweep(time.monotonic() - due)
            # Those that could not be settled are asked again.
            self.worker.doubts.raised.set()

    # The end.

    def is_sent(self) -> bool:
        """Whether the answers that have ended are with the kernel: no reader is so slow that the end of one waits."""
        return not any(connection.holds_an_end() for connection in self._connections.open)

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> bool:
        """Nobody takes over: finish what is under way, tell whoever comes now to come again. At the deadline, or when
        `hurry` is set, tell the rest and end. Whether every answer was sent to its end."""
        self.worker.draining = self._is_ending = True
        for connection in list(self._connections.open):
            connection.close()
        deadline = time.monotonic() + grace_s
        await self._quiet_within(grace_s, hurry)
        if self.group is not None:
            # What other workers wait for is given out here.
            await self._first_of(self.group.until_alone(), hurry.wait(), within_s=deadline - time.monotonic())
        return await self._end()

    async def step_aside(self, grace_s: float, hurry: asyncio.Event) -> bool:
        """Another process serves the socket now: finish what is under way, and end connections between two requests,
        where that can be said in an answer. One that asks nothing for IDLE_PATIENCE_S is closed."""
        self.worker.draining = True
        if self.group is not None:
            self.group.step_down()
        for connection in list(self._connections.open):
            if connection.exchange is not None and not connection.exchange.first_byte_at:
                connection.exchange.request.keep_alive = False
        deadline = time.monotonic() + grace_s
        idle_since: dict[ClientConnection, float] = {}
        while self._connections.open and not hurry.is_set() and (now := time.monotonic()) < deadline:
            for connection in list(self._connections.open):
                if connection.exchange is not None or connection.receiving is not None:
                    idle_since.pop(connection, None)
                elif now - idle_since.setdefault(connection, now) >= IDLE_PATIENCE_S:
                    connection.close()
            await self._quiet_within(LOOK_EVERY_S, hurry)
        return await self._end()

    async def _end(self) -> bool:
        for connection in list(self._connections.open):
            connection.stop()
        await self._quiet_within(FLUSH_S, asyncio.Event())
        is_sent = self.is_sent()
        for connection in list(self._connections.open):
            connection.abort()
        return is_sent

    async def _quiet_within(self, grace_s: float, hurry: asyncio.Event) -> None:
        await self._first_of(self._connections.quiet.wait(), hurry.wait(), within_s=grace_s)

    async def _first_of(self, *waits: Coroutine[Any, Any, object], within_s: float) -> None:
        waiting = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.wait(waiting, timeout=max(0.0, within_s), return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()


class Follower:
    """Keeps a service in step with the two files that control writes. `on_keys` is called when keys have changed,
    before a request is let in by them."""

    def __init__(
        self, service: Service, topology: Path, keys: Path, on_keys: Callable[[], None] = lambda: None
    ) -> None:
        self._service = service
        self._on_keys = on_keys
        self._topology = topology
        self._log = KeyLog(keys)
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._generation = -1
        self._complaint = ""

    def follow(self) -> None:
        """Take in what has changed. What cannot be read leaves everything as it was, and is tried again."""
        try:
            if self._log.follow(self._service.worker.keyring):
                self._on_keys()
            self._follow_topology()
        except (OSError, UnreadableRecord, UsageError) as error:
            self._complain(str(error))
        else:
            self._complaint = ""

    def _follow_topology(self) -> None:
        try:
            status = self._topology.stat()
        except FileNotFoundError:
            return
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return
        topology = decode(self._topology.read_bytes(), Topology)
        if topology.generation > self._generation:
            self._service.apply(topology)
            self._generation = topology.generation
        self._seen = seen

    def _complain(self, text: str) -> None:
        """Once, not at every look."""
        if text != self._complaint:
            self._complaint = text
            print(f"error: {self._topology.parent}: {text}", flush=True)

    async def follow_forever(self) -> None:
        while True:
            self.follow()
            await asyncio.sleep(FOLLOW_INTERVAL_S)
