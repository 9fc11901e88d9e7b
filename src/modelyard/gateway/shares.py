"""What each key holds of a deployment's seats, and how many of the free ones are kept for the others.

A queue alone cannot protect a key that asks seldom: all seats are taken by the one that asks always, and the next one
falls free when an answer ends, seconds later. So while several keys are active, seats stay free for those that hold
less than their share: as many as each of them lately held at once, and one more. What they did not use lately is lent;
a key alone may have all. Every operation but `tidy` takes O(1)."""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.gateway.limits import DOOR


@dataclass(slots=True, eq=False)
class _Holding:
    """`most` is how many seats it held at once since the last turn of the window, `most_before` in the one before;
    `wanted` what it is likely to hold, up to its share."""

    weight: float
    seats: int = 0
    asked_at: float = 0.0
    most: int = 0
    most_before: int = 0
    wanted: int = 1

    @property
    def missing(self) -> int:
        return max(0, self.wanted - self.seats)


class Shares:
    """Seats held by key. `weights` is the sum over active keys."""

    __slots__ = ("_holdings", "_missing", "_turned_at", "weights")

    def __init__(self) -> None:
        self._holdings: dict[str, _Holding] = {}
        self._missing = 0
        self._turned_at = 0.0
        self.weights = 0.0

    def __len__(self) -> int:
        return len(self._holdings)

    def asked(self, key_id: str, weight: float, now: float) -> None:
        holding = self._holdings.get(key_id)
        if holding is None:
            holding = self._holdings[key_id] = _Holding(weight)
            self.weights += weight
            self._missing += holding.missing
        elif holding.weight != weight:
            self.weights += weight - holding.weight
            holding.weight = weight
        holding.asked_at = now

    def took(self, key_id: str) -> None:
        holding = self._holdings.get(key_id)
        if holding is not None:
            if holding.seats < holding.wanted:
                self._missing -= 1
            holding.seats += 1
            if holding.seats > holding.most:
                holding.most = holding.seats

    def gave(self, key_id: str) -> None:
        holding = self._holdings.get(key_id)
        if holding is not None:
            holding.seats -= 1
            if holding.seats < holding.wanted:
                self._missing += 1

    def is_below(self, key_id: str, seats: int) -> bool:
        """Whether the key holds less than its share of `seats`; one seat is everybody's share."""
        holding = self._holdings.get(key_id)
        if holding is None:
            return True
        return holding.seats < self._share(holding, seats)

    def kept_from(self, key_id: str) -> int:
        """How many free seats the other keys are likely to want: what they lately held at once and one more, as far as
        that is within their shares, without what they hold now."""
        holding = self._holdings.get(key_id)
        return self._missing - (holding.missing if holding is not None else 0)

    def tidy(self, now: float, seats: int) -> None:
        """Forget keys that hold nothing and have not asked lately; look anew at what the others want of `seats`."""
        gone = [key for key, one in self._holdings.items() if not one.seats and now - one.asked_at > DOOR.active_s]
        for key_id in gone:
            del self._holdings[key_id]
        # Summed anew: what was added and taken away one by one drifts.
        self.weights = sum(one.weight for one in self._holdings.values())
        turns = now - self._turned_at >= DOOR.lately_s
        for holding in self._holdings.values():
            if turns:
                holding.most_before, holding.most = holding.most, holding.seats
            likely = max(holding.most, holding.most_before) + 1
            holding.wanted = min(likely, int(self._share(holding, seats)))
        if turns:
            self._turned_at = now
        self._missing = sum(holding.missing for holding in self._holdings.values())

    def _share(self, holding: _Holding, seats: int) -> float:
        return max(1.0, seats * holding.weight / self.weights)
