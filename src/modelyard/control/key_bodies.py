"""What the admin API is sent to make a key or a team, or to change one."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from modelyard.control.key_bounds import NO_BOUNDS, Bounds, bounds_of
from modelyard.errors import UsageError
from modelyard.records.keys import Budgets, KeyRecord, Limits, Scopes
from modelyard.records.money import pico_of

LONGEST_OVERLAP_S = 90 * 86_400.0
Name = Annotated[str, Field(max_length=128)]
Count = Annotated[int, Field(ge=1, le=1 << 53)]
Amount = Annotated[str, Field(max_length=64)] | int | float
StructT = TypeVar("StructT", bound=msgspec.Struct)


class BoundsBody(BaseModel):
    """What a key or a team may do; None leaves a bound to its parent. Budgets of money are amounts as people write
    them."""

    model_config = ConfigDict(extra="forbid")
    deployments: list[Name] | None = None
    endpoints: list[Name] | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    max_tokens: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    budget_per_day: Amount | None = None
    budget_per_month: Amount | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    weight: Annotated[float, Field(ge=0.01, le=100)] | None = None

    def bounds(self) -> Bounds:
        """Raises UsageError where an amount is none."""
        return Bounds(
            Scopes(deployments=_tuple(self.deployments), endpoints=_tuple(self.endpoints)),
            Limits(
                requests_per_minute=self.requests_per_minute,
                tokens_per_minute=self.tokens_per_minute,
                concurrent_requests=self.concurrent_requests,
                max_tokens=self.max_tokens,
            ),
            Budgets(
                tokens_per_day=self.tokens_per_day,
                tokens_per_month=self.tokens_per_month,
                pico_per_day=_pico(self.budget_per_day),
                pico_per_month=_pico(self.budget_per_month),
            ),
            self.priority,
            NO_BOUNDS.weight if self.weight is None else self.weight,
        )


class NewTeamBody(BoundsBody):
    """A new team."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    parent: Name | None = None


class NewKeyBody(NewTeamBody):
    """A new key."""

    ttl_s: float | None = Field(default=None, gt=0)


class ChangeBody(BoundsBody):
    """Other bounds for what is there: what is left out stays, what is null goes. `expires_at` is in Unix seconds."""

    expires_at: float | None = None

    def on(self, key: KeyRecord) -> tuple[Bounds, float | None]:
        """All the bounds that `key` shall have, and its end. Raises UsageError where an amount is none."""
        has, asked, stated = bounds_of(key), self.bounds(), self.model_fields_set
        bounds = Bounds(
            _replaced(has.scopes, asked.scopes, stated),
            _replaced(has.limits, asked.limits, stated),
            _replaced(has.budgets, asked.budgets, {name.replace("budget_", "pico_") for name in stated}),
            asked.priority if "priority" in stated else has.priority,
            asked.weight if "weight" in stated else has.weight,
        )
        return bounds, self.expires_at if "expires_at" in stated else key.expires_at

    def told(self) -> dict[str, str]:
        """What the audit log has of it."""
        return {
            name: "none" if value is None else str(value) for name, value in self.model_dump(exclude_unset=True).items()
        }


class RotateBody(BaseModel):
    """For how long the secret before goes on to work."""

    overlap_s: Annotated[float, Field(ge=0, le=LONGEST_OVERLAP_S)] = 0.0


def _replaced(has: StructT, asked: StructT, stated: set[str]) -> StructT:
    """`has` with those fields of `asked` that were stated."""
    names = stated.intersection(has.__struct_fields__)
    return msgspec.structs.replace(has, **{name: getattr(asked, name) for name in names})


def _pico(amount: Amount | None) -> int | None:
    try:
        return None if amount is None else pico_of(amount)
    except ValueError as error:
        raise UsageError(f"a budget of money: {error}", hint="give an amount in the currency of your prices") from error


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
