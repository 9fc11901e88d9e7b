"""Choosing a replica: pure, so that every choice can be replayed from its record."""

from __future__ import annotations

from modelyard.records.decision import Candidate, Decision

NOBODY_LEFT = "every replica has failed this request"


def choose(candidates: tuple[Candidate, ...], tie_break: int) -> Decision:
    """The candidate with the fewest requests in flight among those below their cap that nothing bars.

    Among equals, `tie_break` (a rising count) takes turns, so that idle replicas share the first requests. Where every
    one is barred it is panic: the least bad is taken, of those that have not failed this very request."""
    equals: list[str] = []
    least = sound = 0
    for candidate in candidates:
        if candidate.barred:
            continue
        sound += 1
        in_flight = candidate.in_flight
        if in_flight >= candidate.max_in_flight or (equals and in_flight > least):
            continue
        if not equals or in_flight < least:
            equals, least = [candidate.replica], in_flight
        else:
            equals.append(candidate.replica)
    if not equals:
        return _without_a_sound_one(candidates, tie_break, sound)
    reason = "only replica" if len(candidates) == 1 else "least in flight"
    chosen = equals[tie_break % len(equals)]
    return Decision(replica=chosen, reason=reason, candidates=candidates, tie_break=tie_break)


def _without_a_sound_one(candidates: tuple[Candidate, ...], tie_break: int, sound: int) -> Decision:
    left = [one for one in candidates if one.barred != "excluded"]
    if not left:
        reason = NOBODY_LEFT if candidates else "no replica is ready"
        return Decision(replica=None, reason=reason, candidates=candidates, tie_break=tie_break)
    free = [one for one in left if one.in_flight < one.max_in_flight]
    if sound or not free:
        reason = "every replica is at its cap"
        return Decision(replica=None, reason=reason, candidates=candidates, tie_break=tie_break)
    least = min((one.badness, one.in_flight) for one in free)
    equals = [one.replica for one in free if (one.badness, one.in_flight) == least]
    chosen = equals[tie_break % len(equals)]
    reason = "no replica is sound: the least bad"
    return Decision(replica=chosen, reason=reason, candidates=candidates, tie_break=tie_break, panic=True)


def replay(decision: Decision) -> bool:
    """Whether the recorded inputs still lead to the recorded choice."""
    return choose(decision.candidates, decision.tie_break) == decision
