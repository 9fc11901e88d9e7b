"""What all connections share: the topology, the keys, the doors of the deployments, the journal, and the sweep."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import msgspec

from modelyard.gateway.admission import Admission
from modelyard.gateway.client import ClientConnection, Request
from modelyard.gateway.exchange import Exchange
from modelyard.gateway.heads import json_head
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import KeyLog, Keyring
from modelyard.gateway.limits import WIRE
from modelyard.gateway.refusals import Refusal, unknown_model
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import KeyRecord
from modelyard.records.topology import Deployment, Topology

FOLLOW_INTERVAL_S = 0.1
SWEEP_INTERVAL_S = 0.5


class Service:
    """One gateway worker. Everything here runs on one event loop and is owned by it."""

    def __init__(self, journal: JournalWriter, keyring: Keyring) -> None:
        self.now = time.monotonic
        self.journal = journal
        self.keyring = keyring
        self.admissions: dict[str, Admission] = {}
        self.draining = False
        self._connections: set[ClientConnection] = set()
        self._quiet = asyncio.Event()
        self._sequence = 0

    # Connections' side.

    def connected(self, connection: ClientConnection) -> None:
        self._connections.add(connection)
        if len(self._connections) > WIRE.connections:
            connection.abort()

    def disconnected(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._quiet.set()

    def new_request(self) -> Request:
        self._sequence += 1
        return Request(self._sequence, f"req_{self.journal.worker}{self._sequence:08x}", time.time(), self.now())

    def authenticate(self, authorization: str) -> KeyRecord:
        """The key of an Authorization header. Raises Refusal (401)."""
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Refusal(401, "send your key: Authorization: Bearer <key>", code="missing_api_key")
        return self.keyring.authenticate(secret.strip(), time.time())

    def begin(self, client: ClientConnection, request: Request) -> None:
        """Start an exchange; it may have ended when this returns."""
        exchange = Exchange(self, client, request)
        client.exchange = exchange
        exchange.begin()

    def record(self, record: RequestRecord) -> None:
        self.journal.write(record)

    def record_answer(self, request: Request, status: int, bytes_out: int) -> None:
        """The record of a request that needed no engine."""
        self.journal.write(
            RequestRecord(
                request_id=request.id,
                worker=self.journal.worker,
                sequence=request.sequence,
                at=request.at,
                endpoint=request.route.endpoint,
                status=status,
                outcome="complete" if status == 200 else "refused",
                key_id=request.key.id,
                total_s=round(self.now() - request.began, 6),
                bytes_in=request.received,
                bytes_out=bytes_out,
                error=request.refusal.code if request.refusal is not None else "",
            )
        )

    def answer(self, request: Request) -> tuple[int, bytes]:
        """Status and response of the routes that no engine is needed for."""
        try:
            return 200, self._json(request, self._local_answer(request))
        except Refusal as refusal:
            return refusal.status, refusal.response(request.id, keep_alive=request.keep_alive)

    def _local_answer(self, request: Request) -> object:
        match request.route.kind:
            case "models":
                return {"object": "list", "data": [_model(one) for one in self._seen_by(request)]}
            case "model":
                name = request.target.partition(b"?")[0].removeprefix(b"/v1/models/").decode("latin-1")
                for one in self._seen_by(request):
                    if one.name == name:
                        return _model(one)
                raise unknown_model(name)
            case "ready" if self.draining or not self._open():
                raise Refusal(503, "no deployment is open", code="not_ready", retry_after_s=2)
            case _:
                return {"status": "ok"}

    def _json(self, request: Request, value: object) -> bytes:
        body = msgspec.json.encode(value)
        return json_head(len(body), request.id, "", keep_alive=request.keep_alive) + body

    def _open(self) -> list[Deployment]:
        return [one.deployment for one in self.admissions.values() if one.deployment.open]

    def _seen_by(self, request: Request) -> list[Deployment]:
        endpoint = "/v1/models"
        return [one for one in self._open() if self.keyring.reaches(request.key, one.name, endpoint)]

    # What changes from outside.

    def apply(self, topology: Topology) -> None:
        """Take in a new topology; requests in flight keep the seats that they have."""
        wanted = {deployment.name: deployment for deployment in topology.deployments}
        for name in self.admissions.keys() - wanted.keys():
            closed = msgspec.structs.replace(
                self.admissions[name].deployment, open=False, replicas=(), reason="it was removed"
            )
            self._update(name, closed)
            del self.admissions[name]
        for name, deployment in wanted.items():
            self._update(name, deployment)

    def _update(self, name: str, deployment: Deployment) -> None:
        admission = self.admissions.setdefault(name, Admission(deployment))
        for pool in admission.update(deployment):
            pool.close()

    # Time.

    def sweep(self) -> None:
        """Hold everyone to their deadlines."""
        now = self.now()
        for connection in list(self._connections):
            if connection.deadline <= now:
                connection.expire()
            elif connection.exchange is not None:
                connection.exchange.check_progress(now)
        for admission in self.admissions.values():
            admission.expire(now)
            for seats in admission.seats.values():
                seats.pool.expire(now)

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.sweep()

    async def drain(self, grace_s: float) -> None:
        """Finish what is under way, start nothing new on idle connections; at the deadline cut the rest."""
        self.draining = True
        self._quiet.clear()
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), grace_s)
        for connection in list(self._connections):
            connection.abort()


class Follower:
    """Keeps a service in step with the two files that control writes."""

    def __init__(self, service: Service, topology: Path, keys: Path) -> None:
        self._service = service
        self._topology = topology
        self._log = KeyLog(keys)
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._generation = -1

    def follow(self) -> None:
        self._log.follow(self._service.keyring)
        try:
            status = self._topology.stat()
        except FileNotFoundError:
            return
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            topology = decode(self._topology.read_bytes(), Topology)
        except UnreadableRecord as error:
            print(f"error: {self._topology}: {error}", flush=True)
            return
        if topology.generation > self._generation:
            self._generation = topology.generation
            self._service.apply(topology)

    async def follow_forever(self) -> None:
        while True:
            self.follow()
            await asyncio.sleep(FOLLOW_INTERVAL_S)


def _model(deployment: Deployment) -> dict[str, object]:
    return {"id": deployment.name, "object": "model", "created": deployment.created_at, "owned_by": "modelyard"}
