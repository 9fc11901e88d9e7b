"""The admin API: one key, one loopback listener. A thin wrapper; what happens, happens in `fleet` and `key_log`."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from modelyard import __version__
from modelyard.control import showing, wanted
from modelyard.control.audit_log import AuditLog
from modelyard.control.auditing import audited, noted, tell
from modelyard.control.debugging import LONGEST_S, DebugWindows
from modelyard.control.fleet import Fleet
from modelyard.control.key_log import KeyWriter
from modelyard.control.measurements import Measurements
from modelyard.control.views import DebugWindow, Reloaded
from modelyard.errors import ModelyardError, NotRunning, UsageError
from modelyard.records.keys import Scopes
from modelyard.state import StateDirectory
from modelyard.verify.evidence import latest

# The gateway looks at the key log ten times a second: a key that is shown shall work.
GATEWAY_KNOWS_WITHIN_S = 0.25
# Prometheus gives up after 10 s unless told otherwise.
CATCH_UP_S = 5.0
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
Name = Annotated[str, Field(max_length=128)]


class NewKeyBody(BaseModel):
    """What a new key may do; None leaves a bound to its parent."""

    name: Name
    ttl_s: float | None = Field(default=None, gt=0)
    parent: Name | None = None
    deployments: list[Name] | None = None


class DebugBody(BaseModel):
    """How long a debug window is open, and why."""

    for_s: float = Field(gt=0, le=LONGEST_S)
    reason: str = Field(min_length=1, max_length=200)


def make_app(
    state: StateDirectory,
    admin_key: str,
    fleet: Fleet,
    keys: KeyWriter,
    seen: Measurements,
    audit: AuditLog,
    windows: DebugWindows,
) -> FastAPI:
    """The application. Every route but /health demands the admin key; a Host that is not loopback is refused, so that
    no web page can reach it by a name that it controls."""
    app = FastAPI(title="Modelyard admin", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    locked = APIRouter(dependencies=[Depends(_admin(admin_key))])

    @app.middleware("http")
    async def note(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await audited(audit, request, call_next)
        except ModelyardError as error:
            return _error(500, error.message, error.hint)

    @app.middleware("http")
    async def only_loopback(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in LOOPBACK_HOSTS and host not in LOOPBACK_HOSTS:
            return _error(421, "this host is not served here")
        return await call_next(request)

    @app.exception_handler(ModelyardError)
    async def refused(_: Request, error: ModelyardError) -> Response:
        status = 404 if isinstance(error, UsageError) else 409 if isinstance(error, NotRunning) else 500
        return _error(status, error.message, error.hint)

    @app.exception_handler(StarletteHTTPException)
    async def said_no(_: Request, error: StarletteHTTPException) -> Response:
        headers = {"www-authenticate": "Bearer"} if error.status_code == 401 else {}
        return _error(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(RequestValidationError)
    async def not_understood(_: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        return _error(400, "; ".join(found))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @locked.get("/deployments")
    async def deployments() -> Response:
        return _json(
            [
                showing.of_deployment(one, latest(state, name), 0, windows.until(name))
                for name, one in fleet.running.items()
            ]
        )

    @locked.get("/deployments/{name}")
    async def deployment(name: str, after_step: Annotated[int, Query(ge=0)] = 0) -> Response:
        return _json(showing.of_deployment(fleet.get(name), latest(state, name), after_step, windows.until(name)))

    @locked.post("/deployments/{name}/reload")
    async def reload(name: str, request: Request) -> Response:
        tell(request, wanted_sha256=wanted.sha256(state, name))
        return _json(Reloaded(name=name, after_step=await fleet.reload(name)))

    @locked.post("/deployments/{name}/restart")
    async def restart(name: str) -> Response:
        await fleet.restart(name)
        return _json({"name": name})

    @locked.post("/deployments/{name}/verify")
    async def verify(name: str) -> Response:
        return _json(await fleet.prove_again(name))

    @locked.delete("/deployments/{name}")
    async def remove(name: str) -> Response:
        await fleet.remove(name)
        return _json({"name": name})

    @locked.post("/deployments/{name}/debug")
    async def open_debug(name: str, body: DebugBody, request: Request) -> Response:
        fleet.get(name)
        return _json(DebugWindow(deployment=name, until=windows.open(name, body.for_s, body.reason, noted(request))))

    @locked.delete("/deployments/{name}/debug")
    async def close_debug(name: str, request: Request) -> Response:
        fleet.get(name)
        windows.close(name, noted(request))
        return _json({"name": name})

    @locked.get("/keys")
    async def listed() -> Response:
        return _json(keys.listed())

    @locked.post("/keys")
    async def create(body: NewKeyBody, request: Request) -> Response:
        scopes = Scopes(deployments=tuple(body.deployments) if body.deployments is not None else None)
        key = keys.create(body.name, body.ttl_s, body.parent, scopes)
        tell(request, subject=key.record.id, name=key.record.name)
        await asyncio.sleep(GATEWAY_KNOWS_WITHIN_S)
        return _json({"id": key.record.id, "name": key.record.name, "key": key.secret})

    @locked.delete("/keys/{key_id}")
    async def revoke(key_id: str) -> Response:
        keys.revoke(key_id)
        return _json({"id": key_id})

    @locked.get("/metrics")
    async def metrics() -> Response:
        if not await seen.caught_up(CATCH_UP_S):
            raise HTTPException(503, "the journal is still being counted; ask again")
        return Response(seen.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(locked)
    return app


def _admin(admin_key: str) -> Callable[[Request], Awaitable[None]]:
    async def demand(request: Request) -> None:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(secret.encode(), admin_key.encode()):
            raise HTTPException(401, "the admin key is needed")

    return demand


def _error(status: int, message: str, hint: str = "", headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "hint": hint}}, status, headers)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
