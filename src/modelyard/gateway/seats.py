"""The places at one launch of one replica, and what is known of how it fares."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelyard.gateway.breaker import CLOSED, Breaker
from modelyard.gateway.concurrency import Concurrency
from modelyard.gateway.poison import Launch
from modelyard.gateway.upstream import Pool
from modelyard.records.decision import Candidate
from modelyard.records.topology import Policy, Replica


@dataclass(slots=True)
class Seats:
    """`pool` holds the launch's open connections; `refusing` while it took no connection lately. `limit` is how many
    seats there are now: the replica's `max_in_flight`, or fewer where `concurrency` says so. `suspects` counts the
    isolated ones in flight here: one at most."""

    replica: Replica
    pool: Pool
    in_flight: int = 0
    refusing: bool = False
    breaker: Breaker = CLOSED
    concurrency: Concurrency | None = None
    suspects: int = 0
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.limit = self.replica.max_in_flight

    def update(self, replica: Replica, policy: Policy) -> None:
        """Take in a new topology; what was learned of the launch stays known."""
        self.replica, self.limit = replica, replica.max_in_flight
        if not policy.adaptive_seats:
            self.concurrency = None
            return
        if self.concurrency is None:
            self.concurrency = Concurrency(replica.max_in_flight, policy.first_token_tolerance)
        self.concurrency.bound(replica.max_in_flight, policy.first_token_tolerance)
        self.limit = self.concurrency.limit

    def waits(self, waited_s: float, prompt_tokens: int, now: float) -> None:
        """A request of at most so many fresh prompt tokens has had no first token for so long."""
        if self.concurrency is not None:
            self.concurrency.waits(waited_s, prompt_tokens, now)

    def look(self, now: float) -> None:
        """Hold the limit against what first tokens have shown."""
        if self.concurrency is not None:
            self.limit = self.concurrency.look(self.in_flight, now)

    @property
    def launch(self) -> Launch:
        return self.replica.name, self.replica.launch

    def candidate(self, excluded: frozenset[str]) -> Candidate:
        """As the chooser sees it for a request that these replicas have failed."""
        replica, breaker = self.replica, self.breaker
        if breaker is CLOSED and not self.refusing and not excluded:
            return Candidate(replica=replica.name, in_flight=self.in_flight, max_in_flight=self.limit)
        return Candidate(
            replica=replica.name,
            in_flight=self.in_flight,
            max_in_flight=self.limit,
            barred="excluded"
            if replica.name in excluded
            else "refusing"
            if self.refusing
            else "ejected"
            if breaker.takes_none
            else "",
            badness=breaker.badness,
        )
