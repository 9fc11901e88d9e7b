"""The admin API: one key, one loopback listener. A thin wrapper; what happens, happens in `fleet` and `key_log`."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from modelyard import __version__
from modelyard.control import showing, wanted
from modelyard.control.audit_log import AuditLog
from modelyard.control.auditing import audited, tell
from modelyard.control.debug_routes import add_debug_routes
from modelyard.control.debugging import DebugWindows
from modelyard.control.fleet import Fleet
from modelyard.control.key_log import KeyWriter
from modelyard.control.key_routes import add_key_routes
from modelyard.control.measurements import Measurements
from modelyard.control.views import Reloaded
from modelyard.errors import ModelyardError, NotRunning, UsageError
from modelyard.state import StateDirectory
from modelyard.verify.evidence import latest

# Prometheus gives up after 10 s unless told otherwise.
CATCH_UP_S = 5.0
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


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

    add_key_routes(locked, keys, seen.usage)
    add_debug_routes(locked, fleet, windows)

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
