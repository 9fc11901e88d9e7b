"""What is wanted: one file per deployment in the state directory, written by the operator's command line.

Files, not an API's fields: only the owner of the state directory decides what ends up in an engine's command line."""

from __future__ import annotations

import contextlib
import hashlib

from modelyard.engines.contract import Installed
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.records.base import Record, decode, encode
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
