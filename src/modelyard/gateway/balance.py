"""Choosing a replica: pure, so that every choice can be replayed from its record."""

from __future__ import annotations

from modelyard.records.decision import Candidate, Decision


def choose(candidates: tuple[Candidate, ...], tie_break: int) -> Decision:
    """The candidate with the fewest requests in flight among those below their cap.

    Among equals, `tie_break` (a rising count) takes turns, so that idle replicas share the first requests."""
    free = [c for c in candidates if c.in_flight < c.max_in_flight]
    if not free:
        reason = "every replica is at its cap" if candidates else "no replica is ready"
        return Decision(replica=None, reason=reason, candidates=candidates, tie_break=tie_break)
    least = min(c.in_flight for c in free)
    equals = [c for c in free if c.in_flight == least]
    chosen = equals[tie_break % len(equals)]
    reason = "only replica" if len(candidates) == 1 else "least in flight"
    return Decision(replica=chosen.replica, reason=reason, candidates=candidates, tie_break=tie_break)


def replay(decision: Decision) -> bool:
    """Whether the recorded inputs still lead to the recorded choice."""
    return choose(decision.candidates, decision.tie_break) == decision
