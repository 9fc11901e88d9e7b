"""Whether a request for which no seat is free may wait: pure, so that every refusal can be replayed from its record."""

from __future__ import annotations

import math

from modelyard.gateway.limits import DOOR
from modelyard.records.decision import Admitted, Entry


def admit(entry: Entry) -> Admitted:
    """Let in to wait, let in in place of somebody else, or refused, with the reason.

    The wait is expected to be (those ahead + 1) / rate, the rate being seats / mean time of a seat (Little's law). A
    request that would not be served within the time that it may wait is refused at once, unless next to nobody waits:
    what is known of the rate can be wrong, and a seat should not fall free with nobody there to take it.

    A queue that has not been empty for long serves nobody by being long: then only the shorter `overload_wait_s`
    counts, so that those let in are served soon and the queue is gone soon after the overload (the "controlled delay"
    of Nichols and Jacobson 2012, in its form for servers by Maurer 2015, "Fail at Scale")."""
    expected_s = (entry.ahead + 1) * entry.held_s / entry.seats if entry.seats else 0.0
    is_standing = entry.standing_s >= DOOR.standing_s
    patience_s = min(entry.queue_timeout_s, entry.overload_wait_s) if is_standing else entry.queue_timeout_s
    if expected_s > patience_s and entry.ahead >= math.ceil(entry.seats * DOOR.least_part):
        return _refused(entry, "the wait would be too long", expected_s)
    if entry.room == "free":
        return Admitted(verdict="wait", reason="there is room", expected_s=expected_s, entry=entry)
    if entry.room == "taken":
        return Admitted(verdict="displace", reason="another key has more waiting", expected_s=expected_s, entry=entry)
    return _refused(entry, "the queue is full", expected_s)


def replay(admitted: Admitted) -> bool:
    """Whether the recorded inputs still lead to the recorded verdict."""
    return admit(admitted.entry) == admitted


def retry_after_s(waiting: int, seats: int, held_s: float, jitter: float, least_s: int) -> int:
    """When to come back: the queue ÷ the rate, in whole seconds, which is what the header holds. Up to half of it is
    added at random (`jitter` in [0, 1)): those that are refused in the same second should not come back in the same
    second. Where the rate is unknown, `least_s`."""
    if not seats or held_s <= 0:
        return least_s
    drained_s = (waiting + 1) * held_s / seats
    return min(DOOR.retry_after_most_s, max(1, math.ceil(drained_s * (1 + jitter / 2))))


def _refused(entry: Entry, reason: str, expected_s: float) -> Admitted:
    """The key is told that it is itself the cause where it has more than an equal part of what waits."""
    is_own = entry.keys_waiting > 1 and entry.held * entry.keys_waiting > entry.waiting
    return Admitted(
        verdict="refuse",
        reason=reason,
        expected_s=expected_s,
        status=429 if is_own else 503,
        retry_after_s=retry_after_s(entry.waiting, entry.seats, entry.held_s, entry.jitter, entry.retry_after_s),
        entry=entry,
    )
