"""The admin API's routes for keys, teams and what they used."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import date
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from modelyard.control.auditing import tell
from modelyard.control.key_bodies import ChangeBody, NewKeyBody, NewTeamBody, RotateBody
from modelyard.control.key_log import KeyWriter
from modelyard.observe.usage import Usage, UsageRow

# The gateway looks at the key log ten times a second: a key that is shown shall work.
GATEWAY_KNOWS_WITHIN_S = 0.25


def add_key_routes(routes: APIRouter, keys: KeyWriter, usage: Usage) -> None:
    @routes.get("/keys")
    async def listed() -> Response:
        return _json([one for one in keys.listed() if not one.is_team])

    @routes.get("/keys/{key_id}")
    async def shown(key_id: str) -> Response:
        return _json(keys.shown(key_id))

    @routes.post("/keys")
    async def create(body: NewKeyBody, request: Request) -> Response:
        key = keys.create(body.name, body.ttl_s, body.parent, body.bounds())
        tell(request, subject=key.record.id, name=key.record.name)
        await asyncio.sleep(GATEWAY_KNOWS_WITHIN_S)
        return _json({"id": key.record.id, "name": key.record.name, "key": key.secret})

    @routes.patch("/keys/{key_id}")
    async def change(key_id: str, body: ChangeBody, request: Request) -> Response:
        key = keys.known(key_id)
        keys.change(key.id, *body.on(key))
        tell(request, subject=key.id, name=key.name, **body.told())
        await asyncio.sleep(GATEWAY_KNOWS_WITHIN_S)
        return _json(keys.shown(key.id))

    @routes.post("/keys/{key_id}/rotate")
    async def rotate(key_id: str, body: RotateBody, request: Request) -> Response:
        key = keys.known(key_id)
        secret = keys.rotate(key.id, body.overlap_s)
        tell(request, subject=key.id, name=key.name)
        await asyncio.sleep(GATEWAY_KNOWS_WITHIN_S)
        return _json({"id": key.id, "name": key.name, "key": secret})

    @routes.delete("/keys/{key_id}")
    async def revoke(key_id: str, request: Request) -> Response:
        key = keys.known(key_id)
        keys.revoke(key.id)
        tell(request, subject=key.id, name=key.name)
        return _json({"id": key.id})

    @routes.get("/teams")
    async def teams() -> Response:
        return _json([one for one in keys.listed() if one.is_team])

    @routes.post("/teams")
    async def create_team(body: NewTeamBody, request: Request) -> Response:
        team = keys.create_team(body.name, body.parent, body.bounds())
        tell(request, subject=team.id, name=team.name)
        return _json({"id": team.id, "name": team.name})

    @routes.get("/usage")
    async def used(
        by: Literal["key", "team", "deployment", "day"] = "key",
        since: date | None = None,
        until: date | None = None,
        form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
    ) -> Response:
        rows = usage.rows(by, keys.keys, since=_day(since), until=_day(until))
        return Response(as_csv(rows), media_type="text/csv") if form == "csv" else _json(rows)


def as_csv(rows: tuple[UsageRow, ...]) -> str:
    """With a line of names first, as RFC 4180 has it. A cell that a spreadsheet would compute is made text."""
    out = io.StringIO()
    names = UsageRow.__struct_fields__
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    return out.getvalue()


def _cell(value: str | int) -> str | int:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _day(day: date | None) -> int | None:
    return None if day is None else (day - date(1970, 1, 1)).days


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
