"""What each key holds of a deployment's seats, and which it may not take although they are free.

A queue alone cannot protect a key that asks seldom: all seats are taken by the one that asks always, and the next one
falls free when an answer ends, seconds later. So while several keys are active, some seats stay free for those that
hold less than their share; a key alone may have them all."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.gateway.limits import DOOR


@dataclass(slots=True, eq=False)
class _Holding:
    weight: float
    seats: int = 0
    asked_at: float = 0.0


class Shares:
    """Seats held by key. `weights` is the sum over active keys."""

    __slots__ = ("_holdings", "weights")

    def __init__(self) -> None:
        self._holdings: dict[str, _Holding] = {}
        self.weights = 0.0

    def __len__(self) -> int:
        return len(self._holdings)

    def asked(self, key_id: str, weight: float, now: float) -> None:
        holding = self._holdings.get(key_id)
        if holding is None:
            holding = self._holdings[key_id] = _Holding(weight)
            self.weights += weight
        elif holding.weight != weight:
            self.weights += weight - holding.weight
            holding.weight = weight
        holding.asked_at = now

    def took(self, key_id: str) -> None:
        holding = self._holdings.get(key_id)
        if holding is not None:
            holding.seats += 1

    def gave(self, key_id: str) -> None:
        holding = self._holdings.get(key_id)
        if holding is not None:
            holding.seats -= 1

    def is_below(self, key_id: str, seats: int) -> bool:
        """Whether the key holds less than its share of `seats`; one seat is everybody's share."""
        holding = self._holdings.get(key_id)
        if holding is None:
            return True
        return holding.seats < max(1.0, seats * holding.weight / self.weights)

    def tidy(self, now: float) -> None:
        """Forget keys that hold nothing and have not asked lately."""
        gone = [key for key, one in self._holdings.items() if not one.seats and now - one.asked_at > DOOR.active_s]
        for key_id in gone:
            del self._holdings[key_id]
        # Summed anew: what was added and taken away one by one drifts.
        self.weights = sum(one.weight for one in self._holdings.values())
