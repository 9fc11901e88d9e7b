"""The admin API's routes for keys, teams and what they used."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import date
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from modelyard.control.auditing import tell
from modelyard.control.key_log import Bounds, KeyWriter
from modelyard.errors import UsageError
from modelyard.observe.usage import Usage, UsageRow
from modelyard.records.keys import Budgets, Limits, Scopes
from modelyard.records.money import pico_of

# The gateway looks at the key log ten times a second: a key that is shown shall work.
GATEWAY_KNOWS_WITHIN_S = 0.25
LONGEST_OVERLAP_S = 90 * 86_400.0
Name = Annotated[str, Field(max_length=128)]
Count = Annotated[int, Field(ge=1, le=1 << 53)]
Amount = Annotated[str, Field(max_length=64)] | int | float


class NewTeamBody(BaseModel):
    """What a new team may do; None leaves a bound to its parent. Budgets of money are amounts as people write them."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=128)]
    parent: Name | None = None
    deployments: list[Name] | None = None
    endpoints: list[Name] | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    budget_per_day: Amount | None = None
    budget_per_month: Amount | None = None

    def bounds(self) -> Bounds:
        """Raises UsageError where an amount is none."""
        return Bounds(
            Scopes(deployments=_tuple(self.deployments), endpoints=_tuple(self.endpoints)),
            Limits(
                requests_per_minute=self.requests_per_minute,
                tokens_per_minute=self.tokens_per_minute,
                concurrent_requests=self.concurrent_requests,
            ),
            Budgets(
                tokens_per_day=self.tokens_per_day,
                tokens_per_month=self.tokens_per_month,
                pico_per_day=_pico(self.budget_per_day),
                pico_per_month=_pico(self.budget_per_month),
            ),
        )


class NewKeyBody(NewTeamBody):
    """What a new key may do."""

    ttl_s: float | None = Field(default=None, gt=0)


class RotateBody(BaseModel):
    """For how long the secret before goes on to work."""

    overlap_s: Annotated[float, Field(ge=0, le=LONGEST_OVERLAP_S)] = 0.0


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

    @routes.post("/keys/{key_id}/rotate")
    async def rotate(key_id: str, body: RotateBody) -> Response:
        secret = keys.rotate(key_id, body.overlap_s)
        await asyncio.sleep(GATEWAY_KNOWS_WITHIN_S)
        return _json({"id": key_id, "name": keys.shown(key_id).name, "key": secret})

    @routes.delete("/keys/{key_id}")
    async def revoke(key_id: str) -> Response:
        keys.revoke(key_id)
        return _json({"id": key_id})

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


def _pico(amount: Amount | None) -> int | None:
    try:
        return None if amount is None else pico_of(amount)
    except ValueError as error:
        raise UsageError(f"a budget of money: {error}", hint="give an amount in the currency of your prices") from error


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
