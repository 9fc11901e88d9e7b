"""What may be sent a second time: a share of the requests and a few each second besides, per deployment. Retries beyond
it would turn an outage into a larger one. A pure value."""

from __future__ import annotations

from msgspec import Struct

# Left unused it grows to what the death of one well filled replica takes.
MOST_KEPT = 64.0


class Budget(Struct, frozen=True):
    """`tokens` at time `at` (monotonic seconds), when `requests` had come. So since its beginning no more was spent
    than `share * requests + per_s * seconds`."""

    at: float
    tokens: float = 0.0
    requests: int = 0

    def filled(self, requests: int, now: float, share: float, per_s: float) -> Budget:
        """As it stands now that `requests` have come in all."""
        earned = share * (requests - self.requests) + per_s * max(0.0, now - self.at)
        return Budget(max(now, self.at), min(MOST_KEPT, self.tokens + earned), requests)

    def spent(self) -> Budget | None:
        """With one sending less, or None where there is not one left."""
        return Budget(self.at, self.tokens - 1.0, self.requests) if self.tokens >= 1.0 else None
