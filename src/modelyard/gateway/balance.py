"""Choosing a replica: pure, so that every choice can be replayed from its record."""

from __future__ import annotations

from modelyard.records.decision import Candidate, Decision


def choose(candidates: tuple[Candidate, ...], tie_break: int) -> Decision:
    """The candidate with the fewest requests in flight among those below their cap.

    Among equals, `tie_break` (a rising count) takes turns, so that idle replicas share the first requests."""
    equals: list[str] = []
    least = 0
    for candidate in candidates:
        in_flight = candidate.in_flight
        if in_flight >= candidate.max_in_flight or (equals and in_flight > least):
            continue
        if not equals or in_flight < least:
            equals, least = [candidate.replica], in_flight
        else:
            equals.append(candidate.replica)
    if not equals:
        reason = "every replica is at its cap" if candidates else "no replica is ready"
        return Decision(replica=None, reason=reason, candidates=candidates, tie_break=tie_break)
    reason = "only replica" if len(candidates) == 1 else "least in flight"
    chosen = equals[tie_break % len(equals)]
    return Decision(replica=chosen, reason=reason, candidates=candidates, tie_break=tie_break)


def replay(decision: Decision) -> bool:
    """Whether the recorded inputs still lead to the recorded choice."""
    return choose(decision.candidates, decision.tie_break) == decision
