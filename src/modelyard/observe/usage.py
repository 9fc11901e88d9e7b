"""Who used what, and what it cost: sums over the journal, equal to it to the token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from modelyard.observe.journal import BEGINNING, Checkpoint, Step
from modelyard.observe.seen import SeenRecords
from modelyard.records.base import Record
from modelyard.records.journal import RequestRecord
from modelyard.records.keys import KeyRecord
from modelyard.records.money import show_pico
from modelyard.records.spending import DAY_S, Spending, Spent, period_of

By = Literal["key", "team", "deployment", "day"]
NO_TEAM = ""


class UsageRow(Record, kw_only=True):
    """Requests that began in the days asked for. `id` and `name` say whose: of a key or a team, or the deployment's
    name, or the day as 2026-11-25; a team's row holds what the teams below it used. `prompt_tokens` include the cached
    ones; `estimated` counts requests whose tokens no engine has stated. `cost` is `cost_pico` in the prices' currency,
    exactly."""

    id: str
    name: str
    requests: int = 0
    complete: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    cost_pico: int = 0
    cost: str = "0.00"


@dataclass(slots=True)
class _Sums:
    requests: int = 0
    complete: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    cost_pico: int = 0

    def add(self, other: _Sums) -> None:
        self.requests += other.requests
        self.complete += other.complete
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.estimated += other.estimated
        self.cost_pico += other.cost_pico

    def row(self, row_id: str, name: str) -> UsageRow:
        return UsageRow(
            id=row_id,
            name=name,
            requests=self.requests,
            complete=self.complete,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            estimated=self.estimated,
            cost_pico=self.cost_pico,
            cost=show_pico(self.cost_pico),
        )


class Usage:
    """Sums by day, key and deployment. However the journal is cut into steps, and however often a record is read, each
    counts once."""

    def __init__(self) -> None:
        self.checkpoint: Checkpoint = BEGINNING
        self._seen = SeenRecords()
        self._sums: dict[tuple[int, str, str], _Sums] = {}

    def take(self, step: Step) -> None:
        """The next step of the journal."""
        self.count(step.records)
        self.checkpoint = step.checkpoint

    def count(self, records: Iterable[RequestRecord]) -> None:
        """Add finished requests; a record that was counted before is passed over."""
        for record in records:
            if self._seen.add(record):
                self._count(record)

    def _count(self, record: RequestRecord) -> None:
        place = (int(record.at // DAY_S), record.key_id, record.deployment)
        sums = self._sums.get(place)
        if sums is None:
            sums = self._sums[place] = _Sums()
        sums.requests += 1
        sums.complete += record.outcome == "complete"
        sums.prompt_tokens += record.prompt_tokens
        sums.cached_tokens += record.cached_tokens
        sums.completion_tokens += record.completion_tokens
        sums.estimated += record.usage_source == "estimated"
        sums.cost_pico += record.cost_pico

    def rows(
        self, by: By, keys: Mapping[str, KeyRecord], *, since: int | None = None, until: int | None = None
    ) -> tuple[UsageRow, ...]:
        """One row for each that used anything from day `since` to day `until`, both included (days since 1970-01-01);
        the costliest first, days in order."""
        grouped: dict[tuple[str, str], _Sums] = {}
        for (day, key_id, deployment), sums in self._sums.items():
            if (since is None or day >= since) and (until is None or day <= until):
                for whose in _whose(by, day, key_id, deployment, keys):
                    grouped.setdefault(whose, _Sums()).add(sums)
        rows = [sums.row(*whose) for whose, sums in grouped.items()]
        if by == "day":
            return tuple(sorted(rows, key=lambda row: row.id))
        return tuple(sorted(rows, key=lambda row: (-row.cost_pico, -row.prompt_tokens - row.completion_tokens, row.id)))

    def spending(self, now: float) -> Spending:
        """What budgets are held against in the day and month of `now` (Unix seconds)."""
        period, spent = period_of(now), dict[str, Spent]()
        for (day, key_id, _), sums in self._sums.items():
            if period_of(day * DAY_S).month == period.month:
                tokens, before = sums.prompt_tokens + sums.completion_tokens, spent.get(key_id, Spent())
                spent[key_id] = before.plus(tokens, sums.cost_pico, today=day == period.day)
        return Spending(period=period, offsets=dict(self.checkpoint.offsets), keys=spent)


def _whose(by: By, day: int, key_id: str, deployment: str, keys: Mapping[str, KeyRecord]) -> Iterable[tuple[str, str]]:
    match by:
        case "key":
            return ((key_id, keys[key_id].name if key_id in keys else ""),)
        case "team":
            return tuple((one.id, one.name) for one in _line(key_id, keys) if one.is_team) or ((NO_TEAM, "(no team)"),)
        case "deployment":
            return ((deployment, deployment or "(none)"),)
        case "day":
            return ((show_day(day), show_day(day)),)


def _line(key_id: str | None, keys: Mapping[str, KeyRecord]) -> Iterator[KeyRecord]:
    while key_id is not None and (key := keys.get(key_id)) is not None:
        yield key
        key_id = key.parent


def show_day(day: int) -> str:
    """`2026-11-25`; `day` is days since 1970-01-01."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
