"""What keeps a worker in step with the world: the topology, the keys, time, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import msgspec

from modelyard.errors import UsageError
from modelyard.gateway.admission import Admission
from modelyard.gateway.client import ClientConnection
from modelyard.gateway.connections import Connections
from modelyard.gateway.keyring import KeyLog
from modelyard.gateway.upstream import parse_address
from modelyard.gateway.worker import Worker
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.topology import Deployment, Topology

FOLLOW_INTERVAL_S = 0.1
SWEEP_INTERVAL_S = 0.5
FLUSH_S = 1.0
IDLE_UNDER_PRESSURE_S = 1.0


class Service:
    """A worker and its connections. Everything here runs on one event loop and is owned by it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._connections: Connections[ClientConnection] = Connections(worker.wire)

    def connection(self) -> ClientConnection:
        """The protocol of a client that has just connected."""
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
            admission = self.worker.admissions[name] = Admission(deployment)
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

    async def drain(self, grace_s: float) -> None:
        """Finish what is under way, start nothing new on idle connections; at the deadline tell the rest and end."""
        self.worker.draining = True
        for connection in list(self._connections.open):
            connection.close()
        await self._quiet_within(grace_s)
        for connection in list(self._connections.open):
            connection.stop()
        await self._quiet_within(FLUSH_S)
        for connection in list(self._connections.open):
            connection.abort()

    async def _quiet_within(self, grace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connections.quiet.wait(), grace_s)


class Follower:
    """Keeps a service in step with the two files that control writes."""

    def __init__(self, service: Service, topology: Path, keys: Path) -> None:
        self._service = service
        self._topology = topology
        self._log = KeyLog(keys)
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._generation = -1
        self._complaint = ""

    def follow(self) -> None:
        """Take in what has changed. What cannot be read leaves everything as it was, and is tried again."""
        try:
            self._log.follow(self._service.worker.keyring)
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
