"""What happened to a deployment, in order, for people who watch it."""

from __future__ import annotations

from collections import deque

from modelyard.clock import Clock
from modelyard.records.base import Record

KEPT = 200


class Step(Record, kw_only=True):
    """`number` only rises; `at` is Unix seconds; `kind` says what sort of news it is."""

    number: int
    at: float
    kind: str
    text: str
    replica: str = ""
    ok: bool = True


class Steps:
    """The last news of one deployment."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._steps: deque[Step] = deque(maxlen=KEPT)
        # Numbers rise over restarts of control too: who watches asks for what came after the last one he saw.
        self._number = int(clock.wall() * 1000)

    @property
    def last(self) -> int:
        """The number of the newest step."""
        return self._number

    def add(self, kind: str, text: str, *, replica: str = "", ok: bool = True) -> None:
        self._number += 1
        at = self._clock.wall()
        self._steps.append(Step(number=self._number, at=at, kind=kind, text=text, replica=replica, ok=ok))

    def after(self, number: int) -> tuple[Step, ...]:
        return tuple(step for step in self._steps if step.number > number)
