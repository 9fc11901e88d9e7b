"""The places at one launch of one replica, and what is known of how it fares."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from modelyard.gateway.breaker import CLOSED, Breaker
from modelyard.gateway.poison import Launch
from modelyard.gateway.upstream import Pool
from modelyard.records.decision import Candidate
from modelyard.records.topology import Replica


@dataclass(slots=True)
class Seats:
    """`pool` holds the launch's open connections; `refusing` while it took no connection lately. `suspects` counts
    the isolated ones in flight here: one at most."""

    replica: Replica
    pool: Pool
    in_flight: int = 0
    refusing: bool = False
    breaker: Breaker = CLOSED
    suspects: int = 0

    @property
    def launch(self) -> Launch:
        return self.replica.name, self.replica.launch

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

    def for_suspect(self, excluded: frozenset[str]) -> Candidate:
        """For one that must be isolated: where another one is, there is no place for it."""
        seen = self.candidate(excluded)
        return msgspec.structs.replace(seen, max_in_flight=0) if self.suspects else seen
