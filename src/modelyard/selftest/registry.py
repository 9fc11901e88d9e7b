"""Every row, in one place."""

from __future__ import annotations

from modelyard.errors import UsageError
from modelyard.selftest.row import Row
from modelyard.selftest.rows import (
    bombs,
    http_and_smuggling,
    json_bodies,
    only_replica_killed,
    parameter_bounds,
    routes_and_keys,
    slow_clients,
)

MODULES = (only_replica_killed, json_bodies, bombs, parameter_bounds, http_and_smuggling, slow_clients, routes_and_keys)
ROWS: tuple[Row, ...] = tuple(module.ROW for module in MODULES)


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
