"""What is asked of a change: what is left out stays, what is null goes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.cli.bounding import OPTIONS, Removable
from modelyard.control.key_bodies import BoundsBody, ChangeBody
from modelyard.control.key_bounds import NO_BOUNDS, Bounds, bounds_of
from modelyard.errors import UsageError
from modelyard.records.keys import Budgets, KeyRecord, Limits, Scopes

FULL = Bounds(
    Scopes(deployments=("m",), endpoints=("/v1/completions",)),
    Limits(requests_per_minute=1, tokens_per_minute=2, concurrent_requests=3, max_tokens=4),
    Budgets(tokens_per_day=5, tokens_per_month=6, pico_per_day=7 * 10**12, pico_per_month=8 * 10**12),
    9,
    1.5,
)
VALUES: dict[str, Any] = {
    "deployments": ["n"],
    "endpoints": ["/v1/embeddings"],
    "requests_per_minute": 11,
    "tokens_per_minute": 12,
    "concurrent_requests": 13,
    "max_tokens": 14,
    "tokens_per_day": 15,
    "tokens_per_month": 16,
    "budget_per_day": "17.00",
    "budget_per_month": 18,
    "priority": 19,
    "weight": 2.5,
}


def key(bounds: Bounds, expires_at: float | None = None) -> KeyRecord:
    return bounds.on(KeyRecord(id="k", sha256="0", name="ci", created_at=0.0, expires_at=expires_at))


def after(bounds: Bounds, **stated: Any) -> Bounds:
    return ChangeBody.model_validate(stated).on(key(bounds))[0]


def test_every_bound_can_be_given_by_the_command_line_and_taken_away_by_its_name() -> None:
    fields = set(BoundsBody.model_fields)
    assert fields == set(OPTIONS) == set(VALUES)
    assert {one.field for one in Removable} == fields | {"expires_at"} == set(ChangeBody.model_fields)


@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.booleans()))
def test_only_what_is_named_is_changed(named: dict[str, bool]) -> None:
    stated = {name: VALUES[name] if kept else None for name, kept in named.items()}
    changed = after(FULL, **stated)
    assert after(changed, **stated) == changed, "twice is as good as once"
    everything = BoundsBody.model_validate(VALUES).bounds()
    for name in VALUES:
        expected = FULL if name not in named else everything if named[name] else NO_BOUNDS
        assert read(changed, name) == read(expected, name), name


def read(bounds: Bounds, name: str) -> object:
    for part in (bounds.scopes, bounds.limits, bounds.budgets, bounds):
        if (value := getattr(part, name.replace("budget_", "pico_"), ...)) is not ...:
            return value
    raise AssertionError(name)


def test_the_end_of_a_key_stays_moves_and_goes() -> None:
    had = key(NO_BOUNDS, 100.0)
    ends = [ChangeBody.model_validate(body).on(had)[1] for body in ({}, {"expires_at": 200.0}, {"expires_at": None})]
    assert ends == [100.0, 200.0, None]


def test_the_audit_log_has_what_was_asked_for() -> None:
    body = ChangeBody.model_validate({"requests_per_minute": 60, "budget_per_day": None})
    assert body.told() == {"requests_per_minute": "60", "budget_per_day": "none"}


@pytest.mark.parametrize("body", [{"weight": 0}, {"priority": 101}, {"requests_per_minute": 0}, {"name": "other"}])
def test_what_no_key_can_have_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ChangeBody.model_validate(body)


def test_an_amount_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="a budget of money"):
        after(NO_BOUNDS, budget_per_day="much")


def test_bounds_are_read_back_as_they_were_put_on() -> None:
    assert bounds_of(key(FULL)) == FULL
