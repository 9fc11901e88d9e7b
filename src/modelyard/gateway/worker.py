"""What one worker's connections share: the keys, the doors of the deployments, and the journal."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from modelyard.gateway.accounts import Accounts
from modelyard.gateway.admission import Admission
from modelyard.gateway.debug_window import DebugFiles
from modelyard.gateway.doubts import Doubts
from modelyard.gateway.heads import json_response
from modelyard.gateway.journal import JournalWriter
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.limits import WIRE, WireLimits
from modelyard.gateway.overload import refuses
from modelyard.gateway.pressure import Pressure
from modelyard.gateway.refusals import Refusal, unavailable, unknown_model
from modelyard.gateway.request import Request
from modelyard.gateway.timers import Later, later
from modelyard.gateway.turns import Turns
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import KeyRecord
from modelyard.records.topology import Deployment

OVERLOADED_RETRY_S = 2


class Worker:
    """One event loop's worth of gateway. `draining` once it takes nothing new. `chance` is in [0, 1)."""

    def __init__(
        self,
        journal: JournalWriter,
        keyring: Keyring,
        wire: WireLimits = WIRE,
        chance: Callable[[], float] = random.random,
        later: Later = later,
    ) -> None:
        self.journal = journal
        self.keyring = keyring
        self.accounts = Accounts(keyring)
        self.admissions: dict[str, Admission] = {}
        self.draining = False
        self.wire = wire
        self.chance = chance
        self.later = later
        self.turns = Turns()
        self.pressure = Pressure()
        self.doubts = Doubts()
        # Where prompts and answers go while a debug window is open; nowhere unless the process is told.
        self.debug: DebugFiles | None = None
        self._requests = 0

    def new_request(self) -> Request:
        self._requests += 1
        return Request(f"req_{self.journal.worker}{self._requests:08x}", time.time(), time.monotonic())

    def authenticate(self, authorization: str) -> KeyRecord:
        """The key of an Authorization header. Raises Refusal (401)."""
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Refusal(401, "send your key: Authorization: Bearer <key>", code="missing_api_key")
        return self.keyring.authenticate(secret.strip(), time.time())

    def check_load(self, priority: int) -> None:
        """Raises Refusal (503), from a request's head alone, where this worker has too much to do as it is."""
        if refuses(self.pressure.level, priority):
            wait_s = max((one.retry_after_s() for one in self.admissions.values()), default=OVERLOADED_RETRY_S)
            raise unavailable("the gateway is overloaded", retry_after_s=wait_s, code="overloaded", close=True)

    def record_answer(self, request: Request, status: int, bytes_out: int) -> None:
        """The record of a request that needed no engine."""
        self.journal.write(
            RequestRecord(
                request_id=request.id,
                worker=self.journal.worker,
                sequence=self.journal.sequence,
                at=request.at,
                endpoint=request.route.endpoint,
                status=status,
                outcome="complete" if status == 200 else "refused",
                key_id=request.key.id,
                total_s=time.monotonic() - request.began,
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
            return refusal.status, refusal.response(
                request.id, keep_alive=request.keep_alive, shape=request.route.shape
            )

    def _local_answer(self, request: Request) -> object:
        match request.route.kind:
            case "models":
                return {"object": "list", "data": [_model(one) for one in self._seen_by(request)]}
            case "model":
                name = request.target.partition(b"?")[0].removeprefix(b"/v1/models/")
                # A name may hold a slash, which clients send encoded. The route is decided already.
                name = unquote(name.decode("latin-1"))
                for one in self._seen_by(request):
                    if one.name == name:
                        return _model(one)
                raise unknown_model(name)
            case "ready" if self.draining or not self._open():
                raise Refusal(503, "no deployment is open", code="not_ready", retry_after_s=2)
            case _:
                return {"status": "ok"}

    def _json(self, request: Request, value: object) -> bytes:
        return json_response(msgspec.json.encode(value), request.id, b"", keep_alive=request.keep_alive)

    def _open(self) -> list[Deployment]:
        return [one.deployment for one in self.admissions.values() if one.deployment.open]

    def _seen_by(self, request: Request) -> list[Deployment]:
        endpoint = "/v1/models"
        return [one for one in self._open() if self.keyring.reaches(request.key, one.name, endpoint)]


def _model(deployment: Deployment) -> dict[str, object]:
    return {"id": deployment.name, "object": "model", "created": deployment.created_at, "owned_by": "modelyard"}
