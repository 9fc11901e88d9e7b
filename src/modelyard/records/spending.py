"""What keys have used in the day and the month that it is, both of UTC: what budgets are held against."""

from __future__ import annotations

import calendar
import time
from functools import lru_cache

from modelyard.records.base import Record

DAY_S = 86_400


class Period(Record):
    """The day and the month that a moment lies in, as numbers that rise by one: days and months since 1970-01-01 and
    since the year 0."""

    day: int
    month: int


def period_of(at: float) -> Period:
    """`at` is in Unix seconds."""
    return _period(int(at // DAY_S))


@lru_cache(maxsize=8)
def _period(day: int) -> Period:
    date = time.gmtime(day * DAY_S)
    return Period(day=day, month=date.tm_year * 12 + date.tm_mon - 1)


def day_ends(day: int) -> float:
    """In Unix seconds."""
    return (day + 1) * DAY_S


def month_ends(month: int) -> float:
    """In Unix seconds."""
    year, index = divmod(month + 1, 12)
    return calendar.timegm((year, index + 1, 1, 0, 0, 0))


class Spent(Record, array_like=True):
    """Tokens and money (pico) of requests that began in a day, and in the month around it."""

    day_tokens: int = 0
    day_pico: int = 0
    month_tokens: int = 0
    month_pico: int = 0

    def plus(self, tokens: int, pico: int, *, today: bool) -> Spent:
        """And one more request of the month."""
        return Spent(
            day_tokens=self.day_tokens + tokens * today,
            day_pico=self.day_pico + pico * today,
            month_tokens=self.month_tokens + tokens,
            month_pico=self.month_pico + pico,
        )


class Spending(Record, tag_field="schema", tag="spending/v1"):
    """By key id, of the requests that stand in the journal before `offsets` (file name -> byte offset)."""

    period: Period
    offsets: dict[str, int]
    keys: dict[str, Spent]
