"""Choosing a replica, with everything that the choice depended on, so that it can be replayed."""

from __future__ import annotations

from typing import Literal

from modelyard.records.base import Record


class Candidate(Record, array_like=True):
    """A replica as the chooser saw it. `in_flight` counts requests dispatched and not finished. `barred` says why it
    gets none: it failed this request, took no connection a moment ago, or its breaker is open; `badness` compares those
    where nobody is left."""

    replica: str
    in_flight: int
    max_in_flight: int
    barred: Literal["", "excluded", "refusing", "ejected"] = ""
    badness: int = 0


class Decision(Record):
    """`replica` is None where every candidate was full; `tie_break` is the recorded randomness of the choice. `panic`
    where nobody sound was left and the least bad was taken."""

    replica: str | None
    reason: str
    candidates: tuple[Candidate, ...]
    tie_break: int = 0
    panic: bool = False


class Entry(Record, array_like=True):
    """A request that found no free seat, as the door saw it. `waiting` counts all that wait, `ahead` those that would
    go before it, `held` those of its own key, among `keys_waiting` keys. `seats` are all places at replicas, `held_s`
    how long one is held on average (0: unknown). `standing_s`: for how long the queue has not been empty. `room` in
    the queue: free, to be taken from somebody with more, or none. `jitter`, in [0, 1), is the recorded randomness."""

    waiting: int
    ahead: int
    held: int
    keys_waiting: int
    seats: int
    held_s: float
    standing_s: float
    room: Literal["free", "taken", "none"]
    queue_timeout_s: float
    overload_wait_s: float
    retry_after_s: int
    jitter: float


class Admitted(Record):
    """What became of it: it waits, it waits in place of somebody who was sent away, or it is refused. `status` and
    `retry_after_s` are what a client is told that is refused."""

    verdict: Literal["wait", "displace", "refuse"]
    reason: str
    entry: Entry
    expected_s: float = 0.0
    status: int = 0
    retry_after_s: int = 0
