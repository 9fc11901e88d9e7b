"""What had been spent before this worker began: control's sums, and what the journal holds beyond them.

Nothing that stands in the journal is forgotten, however the gateway before this one ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelyard.gateway.accounts import Accounts
from modelyard.gateway.keyring import Keyring
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.journal import within
from modelyard.records.keys import NO_BUDGET
from modelyard.records.spending import Period, Spending, Spent, period_of

_STEP_BYTES = 4 * 1024 * 1024


class _Used(msgspec.Struct):
    """Of a record only this: a fifth of the time that decoding all of it takes."""

    at: float
    key_id: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_pico: int = 0


_decode = msgspec.json.Decoder(_Used).decode


class Seeding:
    """Counts what was spent in the day and the month that it is, for nodes with a budget: the first time for all of
    them, later for those that have had one only since."""

    def __init__(self, accounts: Accounts, keyring: Keyring, spending: Path, journal: Path) -> None:
        self._accounts, self._keyring = accounts, keyring
        self._spending, self._journal = spending, journal
        self._begun = False

    def seed(self, now: float) -> None:
        """`now` is in Unix seconds. To be called before a request is let in by new bounds."""
        keyring = self._keyring
        nodes, keyring.fresh_budgets = keyring.fresh_budgets, set()
        if not self._begun:
            self._begun = True
            nodes = {key.id for key in keyring.keys.values() if key.budgets != NO_BUDGET}
        self._accounts.begin_budgets(nodes)
        keys = [key for key in keyring.keys.values() if any(one.id in nodes for one in keyring.line(key))]
        if not keys:
            return
        period = period_of(now)
        spent = spent_until_now(self._spending, self._journal, period)
        for key in keys:
            self._accounts.spent(key, spent.get(key.id, Spent()), period, nodes)


def spent_until_now(spending: Path, journal: Path, period: Period) -> dict[str, Spent]:
    """By key id: control's sums, brought forward by the records that they do not hold yet."""
    known = _read(spending, period)
    keys = dict(known.keys)
    for path in sorted(journal.glob("*.ndjson")):
        for used in _records(path, known.offsets.get(path.name, 0)):
            began = period_of(used.at)
            if began.month == period.month:
                tokens = used.prompt_tokens + used.completion_tokens
                before = keys.get(used.key_id, Spent())
                keys[used.key_id] = before.plus(tokens, used.cost_pico, today=began.day == period.day)
    return keys


def _read(path: Path, period: Period) -> Spending:
    nothing = Spending(period=period, offsets={}, keys={})
    try:
        found = decode(path.read_bytes(), Spending)
    except (FileNotFoundError, UnreadableRecord):
        return nothing
    if found.period == period:
        return found
    if found.period.month == period.month and found.period.day < period.day:
        # Of another day: the month goes on, and nothing before the offsets began today.
        keys = {
            key_id: Spent(month_tokens=spent.month_tokens, month_pico=spent.month_pico)
            for key_id, spent in found.keys.items()
        }
        return Spending(period=period, offsets=found.offsets, keys=keys)
    return Spending(period=period, offsets=found.offsets, keys={}) if found.period.month < period.month else nothing


def _records(path: Path, offset: int) -> Iterator[_Used]:
    """Those after `offset`; what is no record, or not written to its end, is passed over. A file that is shorter was
    replaced, and is read from its beginning."""
    with path.open("rb") as file:
        file.seek(offset if offset <= path.stat().st_size else 0)
        rest = b""
        while data := file.read(_STEP_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    yield _decode(within(line))
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue
