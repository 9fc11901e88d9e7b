"""What is wanted: one file per deployment in the state directory, written by the operator's command line.

Files, not an API's fields: only the owner of the state directory decides what ends up in an engine's command line."""

from __future__ import annotations

import contextlib
import hashlib

from modelyard.engines.contract import Installed
from modelyard.errors import UsageError
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.records.plan import Plan
from modelyard.records.topology import Policy
from modelyard.state import StateDirectory, write_atomically


class Wanted(Record, tag_field="schema", tag="wanted/v2", kw_only=True):
    """A deployment as it was planned: what to run, in which environment, and how to treat its requests."""

    name: str
    plan: Plan
    install: Installed
    probes: tuple[KnowledgeProbe, ...]
    created_at: int
    policy: Policy


def save(state: StateDirectory, wanted: Wanted) -> None:
    """Raises UsageError where its prices are in another currency than those of what is wanted already."""
    _check_currency(state, wanted)
    write_atomically(state.deployments / f"{wanted.name}.json", encode(wanted))


def load(state: StateDirectory, name: str) -> Wanted | None:
    """None where no such deployment is wanted. Raises UnreadableRecord."""
    with contextlib.suppress(FileNotFoundError):
        return decode((state.deployments / f"{name}.json").read_bytes(), Wanted)
    return None


def sha256(state: StateDirectory, name: str) -> str:
    """Which configuration that is, in hex; empty where none is wanted."""
    with contextlib.suppress(FileNotFoundError):
        return hashlib.sha256((state.deployments / f"{name}.json").read_bytes()).hexdigest()
    return ""


def names(state: StateDirectory) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in state.deployments.glob("*.json")))


def remove(state: StateDirectory, name: str) -> None:
    (state.deployments / f"{name}.json").unlink(missing_ok=True)


def _check_currency(state: StateDirectory, wanted: Wanted) -> None:
    """Keys and budgets know no currency: what a key spends is one sum over its deployments."""
    if wanted.policy.prices is None:
        return
    mine = wanted.policy.prices.currency
    for name in names(state):
        with contextlib.suppress(UnreadableRecord):
            other = load(state, name) if name != wanted.name else None
            if other is not None and other.policy.prices is not None and other.policy.prices.currency != mine:
                raise UsageError(
                    f"{wanted.name!r} has prices in {mine}, where {name!r} has them in {other.policy.prices.currency}",
                    hint="one currency for all deployments of a state directory",
                )
