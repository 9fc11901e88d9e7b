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
    wherever they begin, hold more than was allowed; a burst may take all of it at once."""

    __slots__ = ("_slots", "_until", "used")

    def __init__(self) -> None:
        self.used = 0
        self._slots = [0] * _SLOTS
        self._until = 0

    def _forward(self, now: float) -> None:
        """Let go what is older than a minute."""
        second = int(now)
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

    def wait_s(self, amount: int, most: int, now: float) -> float:
        """Seconds until `amount` more would be at most `most`: 0 now, NEVER where it is more than `most`."""
        self._forward(now)
        missing = self.used + amount - most
        if missing <= 0:
            return 0.0
        if amount > most:
            return NEVER
        for second in range(self._until - _WINDOW_S, self._until + 1):
            missing -= self._slots[second % _SLOTS]
            if missing <= 0:
                return second + _SLOTS - now
        return NEVER

    def left(self, most: int, now: float) -> int:
        self._forward(now)
        return max(most - self.used, 0)

    def empty_in_s(self, now: float) -> float:
        """Seconds until nothing of what was taken counts any more."""
        self._forward(now)
        for second in range(self._until, self._until - _SLOTS, -1):
            if self._slots[second % _SLOTS]:
                return second + _SLOTS - now
        return 0.0

    def take(self, amount: int, now: float) -> None:
        self._forward(now)
        self.used += amount
        self._slots[self._until % _SLOTS] += amount

    def correct(self, taken: int, used: int, at: float, now: float) -> None:
        """Of what was `taken` at `at`, `used` is now known: the rest goes back. What was used beyond it counts from
        now on."""
        self._forward(now)
        if used > taken:
            self.take(used - taken, now)
        elif int(at) > self._until - _SLOTS:
            self.used -= taken - used
            self._slots[int(at) % _SLOTS] -= taken - used


class _Used:
    """Of one period: what was used, and what requests in flight hold."""

    __slots__ = ("held_pico", "held_tokens", "pico", "tokens")

    def __init__(self) -> None:
        self.tokens = self.pico = self.held_tokens = self.held_pico = 0


class Budget:
    """What may be used in each day, or in each month. Every amount counts in the period that its request began in."""

    __slots__ = ("_periods", "_word", "most_pico", "most_tokens")

    def __init__(self, word: Literal["day", "month"], most_tokens: int | None, most_pico: int | None) -> None:
        self._word = word
        self._periods: dict[int, _Used] = {}
        self.bound(most_tokens, most_pico)

    def bound(self, most_tokens: int | None, most_pico: int | None) -> None:
        self.most_tokens, self.most_pico = most_tokens, most_pico

    def _of(self, period: Period) -> _Used:
        number = period.day if self._word == "day" else period.month
        spent = self._periods.get(number)
        if spent is None:
            spent = self._periods[number] = _Used()
            if len(self._periods) > _KEPT_PERIODS:
                del self._periods[next(iter(self._periods))]
        return spent

    def short(self, tokens: int, pico: int, period: Period, at: float) -> Short | None:
        """What is missing for `tokens` and `pico` at `at` (Unix seconds); None where they can be had."""
        if self.most_tokens is None and self.most_pico is None:
            return None
        spent = self._of(period)
        if (most := self.most_tokens) is not None and spent.tokens + spent.held_tokens + tokens > most:
            what = f"the budget of {most} tokens per {self._word}"
            return self._short(what, str(tokens), str(max(most - spent.tokens, 0)), spent.tokens + tokens > most, at)
        if (most := self.most_pico) is not None and spent.pico + spent.held_pico + pico > most:
            what, left = f"the budget of {show_pico(most)} per {self._word}", show_pico(max(most - spent.pico, 0))
            return self._short(what, show_pico(pico), left, spent.pico + pico > most, at)
        return None

    def _short(self, what: str, asked: str, left: str, is_spent: bool, at: float) -> Short:
        if not is_spent:
            return Short(f"{what}: requests in flight hold the rest of it", SOON_S)
        period = period_of(at)
        ends = day_ends(period.day) if self._word == "day" else month_ends(period.month)
        return Short(f"{what}: {left} left, this request may take {asked}", ends - at, "insufficient_quota")

    def hold(self, tokens: int, pico: int, period: Period) -> None:
        spent = self._of(period)
        spent.held_tokens += tokens
        spent.held_pico += pico

    def release(self, tokens: int, pico: int, period: Period) -> None:
        spent = self._of(period)
        spent.held_tokens -= tokens
        spent.held_pico -= pico

    def spend(self, tokens: int, pico: int, period: Period) -> None:
        spent = self._of(period)
        spent.tokens += tokens
        spent.pico += pico
