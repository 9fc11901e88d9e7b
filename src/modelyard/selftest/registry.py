"""Every row, in one place: whatever the modules of `rows` hold."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

from modelyard.errors import UsageError
from modelyard.selftest import rows
from modelyard.selftest.row import Row


def _found() -> Iterator[Row]:
    """A module has ROWS, or one ROW."""
    for module in pkgutil.iter_modules(rows.__path__, f"{rows.__name__}."):
        names = vars(import_module(module.name))
        yield from names.get("ROWS") or (names["ROW"],)


def _place(row: Row) -> tuple[int, str]:
    """By number, words last."""
    number = re.match(r"\d+", row.key)
    return (int(number[0]) if number else 1_000_000, row.key)


ROWS: tuple[Row, ...] = tuple(sorted(_found(), key=_place))


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
