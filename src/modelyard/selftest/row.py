"""A row: one promise, how often it is tried, and the code that its result speaks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from modelyard.errors import ModelyardError
from modelyard.selftest.bench import Bench
from modelyard.selftest.outcome import Outcome


class CannotRun(ModelyardError):
    """This row cannot be tried here; the message says what is missing. It counts as neither green nor red."""


@dataclass(frozen=True)
class Row:
    """`key` is its number, or a word where it has none. `claim` is the criterion in one sentence. `run` tries it
    `bench.size` times: `full`, or `short` in the short form (0: it has none); `unit` says times what.

    `sources` are the files and folders below the package (or below `benchmarks/`) that run as processes of their own:
    the result speaks for them, for the row's file, and for all that these import. `takes_s` is about how long the full
    form takes on a quiet machine, `limit_s` when it is given up."""

    key: str
    name: str
    claim: str
    unit: str
    full: int
    short: int
    run: Callable[[Bench], Awaitable[Outcome]]
    sources: tuple[str, ...]
    takes_s: float
    limit_s: float = 3600.0
