"""Bounds over time: what may be used in any minute, and in a day or a month of UTC. State without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelyard.records.money import show_pico
from modelyard.records.spending import Period, day_ends, month_ends, period_of

NEVER = float("inf")
# What requests in flight hold may come back at any moment: nothing better is known than "soon".
SOON_S = 1.0
_WINDOW_S = 60
_SLOTS = _WINDOW_S + 1
# A day that is over may still be asked for by a request that began in it, and a clock may be set and set back.
_KEPT_PERIODS = 4


@dataclass(frozen=True, slots=True)
class Short:
    """Why something cannot be had, and in how many seconds it could: NEVER, where it asks for more than there ever
    is."""

    what: str
    wait_s: float
    code: Literal["rate_limit_exceeded", "insufficient_quota"] = "rate_limit_exceeded"


class MinuteWindow:
    """How much was taken in the last minute. Counted by whole seconds, with the one that it began in, so that no 60 s,
    wherever they begin, hold more than `most`; a burst may take all of it at once."""

    __slots__ = ("_slots", "_until", "most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self._slots = [0] * _SLOTS
        self._until = 0

    def _forward(self, second: int) -> None:
        """Let go what is older than a minute."""
        gap = second - self._until
        if gap <= 0:
            return
        slots = self._slots
        if gap >= _SLOTS or not self.used:
            self._slots, self.used = [0] * _SLOTS, 0
        else:
            for passed in range(self._until + 1, second + 1):
                self.used -= slots[passed % _SLOTS]
                slots[passed % _SLOTS] = 0
        self._until = second

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until `amount` more could be had: 0 now, NEVER where it is more than any minute holds."""
        if (second := int(now)) > self._until:
            self._forward(second)
        missing = self.used + amount - self.most
        if missing <= 0:
            return 0.0
        if amount > self.most:
            return NEVER
        for second in range(self._until - _WINDOW_S, self._until + 1):
            missing -= self._slots[second % _SLOTS]
            if missing <= 0:
                return second + _SLOTS - now
        return NEVER

    def left(self, now: float) -> int:
        if (second := int(now)) > self._until:
            self._forward(second)
        return max(self.most - self.used, 0)

    def empty_in_s(self, now: float) -> float:
        """Seconds until nothing of what was taken counts any more."""
        self._forward(int(now))
        for second in range(self._until, self._until - _SLOTS, -1):
            if self._slots[second % _SLOTS]:
                return second + _SLOTS - now
        return 0.0

    def take(self, amount: int, now: float) -> None:
        if (second := int(now)) > self._until:
            self._forward(second)
        self.used += amount
        self._slots[self._until % _SLOTS] += amount

    def put(self, amount: int, at: float, now: float) -> None:
        """`amount` was taken at `at`, which is learned only now."""
        if (second := int(now)) > self._until:
            self._forward(second)
        began = min(int(at), self._until)
        if began > self._until - _SLOTS:
            self.used += amount
            self._slots[began % _SLOTS] += amount

    def correct(self, taken: int, used: int, at: float, now: float) -> None:
        """Of what was `taken` at `at`, `used` is now known: the rest goes back. What was used beyond it counts from
        now on."""
        if (second := int(now)) > self._until:
            self._forward(second)
        if used > taken:
            self.take(used - taken, now)
        elif (began := int(at)) > self._until - _SLOTS:
            # No more than is there: a window may be younger than a request that ends.
            back = min(taken - used, self._slots[began % _SLOTS])
            self.used -= back
            self._slots[began % _SLOTS] -= back


class _Used:
    """Of one period: what was used, and what requests in flight hold."""

    __slots__ = ("held_pico", "held_tokens", "pico", "tokens")

    def __init__(self) -> None:
        self.tokens = self.pico = self.held_tokens = self.held_pico = 0


class Budget:
    """What may be used in each day, or in each month. Every amount counts in the period that its request began in."""

    __slots__ = ("_number", "_periods", "_used", "_word", "most_pico", "most_tokens")

    def __init__(self, word: Literal["day", "month"], most_tokens: int | None, most_pico: int | None) -> None:
        self._word = word
        self._periods: dict[int, _Used] = {}
        self._number, self._used = -1, _Used()
        self.most_tokens, self.most_pico = most_tokens, most_pico

    def _of(self, period: Period) -> _Used:
        number = period.day if self._word == "day" else period.month
        if number == self._number:
            return self._used
        used = self._periods.get(number)
        if used is None:
            used = self._periods[number] = _Used()
            if len(self._periods) > _KEPT_PERIODS:
                del self._periods[next(iter(self._periods))]
        self._number, self._used = number, used
        return used

    def short(self, tokens: int, pico: int, period: Period, at: float) -> Short | None:
        """What is missing for `tokens` and `pico` at `at` (Unix seconds); None where they can be had."""
        used = self._of(period)
        if (most := self.most_tokens) is not None and used.tokens + used.held_tokens + tokens > most:
            what = f"the budget of {most} tokens per {self._word}"
            return self._short(what, str(tokens), str(max(most - used.tokens, 0)), used.tokens + tokens > most, at)
        if (most := self.most_pico) is not None and used.pico + used.held_pico + pico > most:
            what, left = f"the budget of {show_pico(most)} per {self._word}", show_pico(max(most - used.pico, 0))
            return self._short(what, show_pico(pico), left, used.pico + pico > most, at)
        return None

    def _short(self, what: str, asked: str, left: str, is_spent: bool, at: float) -> Short:
        if not is_spent:
            return Short(f"{what}: requests in flight hold the rest of it", SOON_S)
        period = period_of(at)
        ends = day_ends(period.day) if self._word == "day" else month_ends(period.month)
        return Short(f"{what}: {left} left, this request may take {asked}", ends - at, "insufficient_quota")

    def hold(self, tokens: int, pico: int, period: Period) -> None:
        used = self._of(period)
        used.held_tokens += tokens
        used.held_pico += pico

    def settle(self, held_tokens: int, held_pico: int, tokens: int, pico: int, period: Period) -> None:
        """What was held is held no more; what was used is spent. A budget may be younger than a request that ends, and
        then holds nothing of it."""
        used = self._of(period)
        used.held_tokens = max(0, used.held_tokens - held_tokens)
        used.held_pico = max(0, used.held_pico - held_pico)
        used.tokens += tokens
        used.pico += pico
