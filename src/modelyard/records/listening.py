"""What a running yard says about itself: where clients and the command line find it."""

from __future__ import annotations

from modelyard.records.base import Record


class Listening(Record, tag_field="schema", tag="listening/v1", kw_only=True):
    """`url` is what clients use as base URL; `admin` answers the command line only. `pid` is yard's."""

    pid: int
    url: str
    admin: str
    started_at: float
    version: str


class StartFailed(Record, tag_field="schema", tag="start-failed/v1", kw_only=True):
    """Why a yard could not start, for the command that started it."""

    message: str
    hint: str
    exit_code: int


StartOutcome = Listening | StartFailed


class GatewayProcess(Record):
    """One of the gateway's processes; `number` counts from 0 and stays with whoever takes its place."""

    number: int
    pid: int
    is_ready: bool


class Gateways(Record, tag_field="schema", tag="gateways/v1", kw_only=True):
    """The gateway's processes as yard knows them: `workers` is how many there should be, `serving` those that live now.
    `leaving` finish their answers. `reloads` counts reloads that came to
    an end; `failure` says why the last one changed nothing, empty where it did what it should."""

    workers: int
    serving: tuple[GatewayProcess, ...]
    leaving: tuple[int, ...] = ()
    reloads: int = 0
    failure: str = ""
