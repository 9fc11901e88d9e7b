"""Whether a replica is asked: closed while it answers, open for a while once it fails too much, then half open: one
request may try. Values and pure functions; time and chance are given, so that every step can be replayed.

What counts is what a replica did with a request: it *answered* (a refusal of its own, a 4xx, is an answer), it *erred*
(said 5xx, or an error in its stream), or it was *lost* (took no connection, or ended one without an answer). Losses
open it by their number in a row, for a process that is gone is gone at once; losses and errors together open it by
their share, from a least volume on, for an engine that errs may do so because of what it was asked."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from modelyard.records.topology import Failover

Event = Literal["answered", "erred", "lost", "withdrawn"]
WINDOW_S = 10.0
# How long openings are remembered after the last one: the next is longer until then.
MEMORY_S = 120.0
JITTER = 0.25


class Breaker(Struct, frozen=True):
    """`answered` and `failed` count since `since`, `lost` in a row; `until` is when an open one half opens, and when a
    closed one forgets its `openings`. `probing` while the one request of a half-open one is under way."""

    state: Literal["closed", "open", "half_open"] = "closed"
    answered: int = 0
    failed: int = 0
    lost: int = 0
    since: float = 0.0
    openings: int = 0
    until: float = 0.0
    probing: bool = False

    @property
    def takes_none(self) -> bool:
        return self.state == "open" or self.probing

    @property
    def badness(self) -> int:
        """Openings in hundreds, and the percentage that failed lately: whom to ask when nobody is sound."""
        seen = self.answered + self.failed
        return self.openings * 100 + (self.failed * 99 // seen if seen else 0)


CLOSED = Breaker()


def learned(breaker: Breaker, event: Event, now: float, limits: Failover, chance: float) -> Breaker:
    """What becomes of it by one outcome. `chance` in [0, 1) spreads the ends of openings."""
    if event == "withdrawn":
        return replace(breaker, probing=False) if breaker.probing else breaker
    if breaker.state == "open":
        # News of a request from before, or of one that was sent here for want of a better: worth a try.
        return replace(breaker, state="half_open") if event == "answered" else breaker
    if breaker.state == "half_open":
        if event != "answered":
            return _opened(breaker, now, limits, chance)
        return Breaker(since=now, openings=breaker.openings, until=now + MEMORY_S)
    if event == "answered":
        if breaker is CLOSED:
            return breaker
        return replace(breaker, answered=breaker.answered + 1, lost=0)
    if breaker.failed == 0 or now - breaker.since > WINDOW_S:
        breaker = Breaker(since=now, openings=breaker.openings, until=breaker.until, lost=breaker.lost)
    breaker = replace(breaker, failed=breaker.failed + 1, lost=breaker.lost + 1 if event == "lost" else 0)
    return _opened(breaker, now, limits, chance) if _is_too_much(breaker, limits) else breaker


def probed(breaker: Breaker) -> Breaker:
    """A request goes to it."""
    return replace(breaker, probing=True) if breaker.state == "half_open" else breaker


def stepped(breaker: Breaker, now: float) -> Breaker:
    """What time alone does to it."""
    if breaker.state == "open" and now >= breaker.until:
        return replace(breaker, state="half_open", probing=False)
    if breaker.state == "closed" and now - breaker.since > WINDOW_S and now >= breaker.until:
        return CLOSED
    return breaker


def _is_too_much(breaker: Breaker, limits: Failover) -> bool:
    seen = breaker.answered + breaker.failed
    return breaker.lost >= limits.eject_after or (
        seen >= limits.eject_volume and breaker.failed >= limits.eject_share * seen
    )


def _opened(breaker: Breaker, now: float, limits: Failover, chance: float) -> Breaker:
    openings = breaker.openings + 1
    length_s = min(limits.eject_s * 2.0 ** min(openings - 1, 30), limits.eject_most_s)
    until = now + length_s * (1 + JITTER * chance)
    return replace(breaker, state="open", openings=openings, until=until, probing=False, lost=0)
