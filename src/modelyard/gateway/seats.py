"""The places at one launch of one replica, and what is known of how it fares."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.gateway.breaker import CLOSED, Breaker
from modelyard.gateway.upstream import Pool
from modelyard.records.decision import Candidate
from modelyard.records.topology import Replica


@dataclass(slots=True)
class Seats:
    """`pool` holds the launch's open connections; `refusing` while it took no connection lately."""

    replica: Replica
    pool: Pool
    in_flight: int = 0
    refusing: bool = False
    breaker: Breaker = CLOSED

    def candidate(self, excluded: frozenset[str]) -> Candidate:
        """As the chooser sees it for a request that these replicas have failed."""
        replica, breaker = self.replica, self.breaker
        if breaker is CLOSED and not self.refusing and not excluded:
            return Candidate(replica=replica.name, in_flight=self.in_flight, max_in_flight=replica.max_in_flight)
        return Candidate(
            replica=replica.name,
            in_flight=self.in_flight,
            max_in_flight=replica.max_in_flight,
            barred="excluded"
            if replica.name in excluded
            else "refusing"
            if self.refusing
            else "ejected"
            if breaker.takes_none
            else "",
            badness=breaker.badness,
        )
