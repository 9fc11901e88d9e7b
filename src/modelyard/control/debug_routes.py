"""The admin API's routes for debug windows."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from modelyard.control.auditing import noted
from modelyard.control.debugging import LONGEST_S, DebugWindows
from modelyard.control.fleet import Fleet
from modelyard.control.views import DebugWindow


class DebugBody(BaseModel):
    """How long a window is open, and why."""

    model_config = ConfigDict(extra="forbid")
    for_s: float = Field(gt=0, le=LONGEST_S)
    reason: str = Field(min_length=1, max_length=200)


def add_debug_routes(routes: APIRouter, fleet: Fleet, windows: DebugWindows) -> None:
    @routes.post("/deployments/{name}/debug")
    async def open_window(name: str, body: DebugBody, request: Request) -> Response:
        fleet.get(name)
        until = windows.open(name, body.for_s, body.reason, noted(request))
        return _json(DebugWindow(deployment=name, until=until))

    @routes.delete("/deployments/{name}/debug")
    async def close_window(name: str, request: Request) -> Response:
        fleet.get(name)
        windows.close(name, noted(request))
        return _json({"name": name})


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
