"""Names in the order of a number that changes: the least is found in O(log n)."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

_SLACK = 64


class Ranking:
    """A heap in which an entry that has been replaced stays until it comes up. Equals: who was set first."""

    __slots__ = ("_current", "_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._current: dict[str, tuple[float, int]] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._current)

    def set(self, name: str, value: float) -> None:
        """Put a name in, or move it."""
        self._order += 1
        self._current[name] = (value, self._order)
        heappush(self._heap, (value, self._order, name))
        if len(self._heap) > 2 * len(self._current) + _SLACK:
            self._heap = [(value, order, one) for one, (value, order) in self._current.items()]
            heapify(self._heap)

    def remove(self, name: str) -> None:
        self._current.pop(name, None)

    def least(self, accepts: Callable[[str], bool] = lambda name: True) -> str | None:
        """The name with the least value among those that `accepts` accepts, asked from the least on, each for O(log n);
        None where there is none. `accepts` must not change the ranking."""
        found, passed_over = None, list[tuple[float, int, str]]()
        while self._heap and found is None:
            entry = self._heap[0]
            _, order, name = entry
            if not self._is_current(name, order):
                heappop(self._heap)
            elif accepts(name):
                found = name
            else:
                passed_over.append(heappop(self._heap))
        for entry in passed_over:
            heappush(self._heap, entry)
        return found

    def _is_current(self, name: str, order: int) -> bool:
        current = self._current.get(name)
        return current is not None and current[1] == order
