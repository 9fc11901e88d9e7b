"""Every row, in one place."""

from __future__ import annotations

import re
from types import ModuleType

from modelyard.errors import UsageError
from modelyard.selftest.row import Row
from modelyard.selftest.rows import (
    bombs,
    budgets,
    canaries,
    client_leaves,
    drain,
    gateway_killed,
    http_and_smuggling,
    injected_text,
    json_bodies,
    kills,
    million_requests,
    nothing_is_fetched,
    only_replica_killed,
    outage,
    overload,
    parameter_bounds,
    requests_of_any_shape,
    routes_and_keys,
    secrets_stay,
    slow_clients,
    streams_resumed,
    tenants_apart,
    upstream_misbehaves,
)

MODULES = (
    bombs,
    budgets,
    canaries,
    client_leaves,
    drain,
    gateway_killed,
    http_and_smuggling,
    injected_text,
    json_bodies,
    kills,
    million_requests,
    nothing_is_fetched,
    only_replica_killed,
    outage,
    overload,
    parameter_bounds,
    requests_of_any_shape,
    routes_and_keys,
    secrets_stay,
    slow_clients,
    streams_resumed,
    tenants_apart,
    upstream_misbehaves,
)


def _rows_of(module: ModuleType) -> tuple[Row, ...]:
    """A module has ROWS, or one ROW."""
    return getattr(module, "ROWS", None) or (module.ROW,)


def _place(row: Row) -> tuple[int, str]:
    """By number, words last."""
    number = re.match(r"\d+", row.key)
    return (int(number[0]) if number else 1_000_000, row.key)


ROWS: tuple[Row, ...] = tuple(sorted((row for module in MODULES for row in _rows_of(module)), key=_place))


def choose(text: str) -> tuple[Row, ...]:
    """The rows that `4,22,33-35,word` names, in the order of the registry; the empty text names all, `none` none.
    Raises UsageError for one that does not exist."""
    if not text or text == "none":
        return () if text else ROWS
    wanted: set[str] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if dash and first.isdigit() and last.isdigit():
            # A range means the rows in it that exist.
            found = {row.key for row in ROWS if row.key.isdigit() and int(first) <= int(row.key) <= int(last)}
        else:
            found = {row.key for row in ROWS if row.key == part}
        wanted |= found
        if not found:
            known = ", ".join(row.key for row in ROWS)
            raise UsageError(f"there is no row {part!r}", hint=f"the rows are {known}; a range is 33-35")
    return tuple(row for row in ROWS if row.key in wanted)
