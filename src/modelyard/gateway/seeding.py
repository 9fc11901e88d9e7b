"""What had been used before this worker counted: control's sums, and what the journal holds beyond them.

Nothing that stands in the journal is forgotten, however the gateway before this one ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic, time

import msgspec

from modelyard.gateway.accounts import Accounts
from modelyard.gateway.keyring import Keyring
from modelyard.records.base import UnreadableRecord, decode
from modelyard.records.journal import within
from modelyard.records.keys import NO_BUDGET, UNLIMITED
from modelyard.records.spending import Period, Spending, Spent, period_of

_STEP_BYTES = 4 * 1024 * 1024
_BACK_BYTES = 1024 * 1024
# A minute, and the second that it began in.
_MINUTE_S = 61.0


class Used(msgspec.Struct):
    """Of a record only this: a fifth of the time that decoding all of it takes."""

    at: float
    request_id: str = ""
    key_id: str = ""
    total_s: float = 0.0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_pico: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


_decode = msgspec.json.Decoder(Used).decode


class Seeding:
    """Counts what was used in the day and the month that it is, for nodes with a budget, and in the last minute for
    those with limits: the first time for all of them, later budgets of those that have had one only since."""

    def __init__(self, keyring: Keyring, spending: Path, journal: Path, wall: Callable[[], float] = time) -> None:
        self._keyring, self._spending, self._journal = keyring, spending, journal
        # In Unix seconds.
        self._wall = wall
        self._begun = False

    def keys_changed(self, accounts: Accounts) -> None:
        """To be called before a request is let in by new bounds."""
        if not accounts.are_kept:
            return
        if not self._begun:
            self.begin(accounts)
        else:
            nodes, self._keyring.fresh_budgets = self._keyring.fresh_budgets, set()
            self._count_budgets(accounts, nodes, sizes_of(self._journal))

    def begin(self, accounts: Accounts) -> dict[str, int]:
        """Into accounts that hold nothing. Returns how far each file of the journal was counted, in bytes."""
        self._begun = True
        self._keyring.fresh_budgets.clear()
        sizes, keys = sizes_of(self._journal), self._keyring.keys.values()
        self._count_budgets(accounts, {key.id for key in keys if key.budgets != NO_BUDGET}, sizes)
        if any(key.limits != UNLIMITED for key in keys):
            self._count_last_minute(accounts, sizes)
        return sizes

    def ended(self, name: str, requests: Iterable[str]) -> tuple[dict[str, Used], int]:
        """Of `requests`, whose worker has just ended, those whose records stand at the end of its file `name`, by their
        ids; and the file's size. A record is written in the turn of the event loop in which its end is told."""
        path, wanted = self._journal / name, set(requests)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return {}, 0
        found = _records(path, max(0, size - _BACK_BYTES), size) if wanted else ()
        return {used.request_id: used for used in found if used.request_id in wanted}, size

    def _count_budgets(self, accounts: Accounts, nodes: set[str], sizes: Mapping[str, int]) -> None:
        keyring = self._keyring
        accounts.begin_budgets(nodes)
        keys = [key for key in keyring.keys.values() if any(one.id in nodes for one in keyring.line(key))]
        if not keys:
            return
        period = period_of(self._wall())
        spent = spent_until_now(self._spending, self._journal, sizes, period)
        for key in keys:
            accounts.spent(key, spent.get(key.id, Spent()), period, nodes)

    def _count_last_minute(self, accounts: Accounts, sizes: Mapping[str, int]) -> None:
        wall, now = self._wall(), monotonic()
        for used in _last_minute(self._journal, sizes, wall):
            key = self._keyring.keys.get(used.key_id)
            if key is not None:
                ended = now - (wall - used.at - used.total_s)
                accounts.used(key, used.tokens, ended, now)


def sizes_of(journal: Path) -> dict[str, int]:
    """Of each of its files, by name, in bytes."""
    return {path.name: path.stat().st_size for path in sorted(journal.glob("*.ndjson"))}


def spent_until_now(spending: Path, journal: Path, sizes: Mapping[str, int], period: Period) -> dict[str, Spent]:
    """By key id: control's sums, brought forward by the records that they do not hold yet, of each file up to its
    size."""
    known = _read(spending, period)
    keys = dict(known.keys)
    for name, size in sizes.items():
        for used in _records(journal / name, known.offsets.get(name, 0), size):
            began = period_of(used.at)
            if began.month == period.month:
                before = keys.get(used.key_id, Spent())
                keys[used.key_id] = before.plus(used.tokens, used.cost_pico, today=began.day == period.day)
    return keys


def _last_minute(journal: Path, sizes: Mapping[str, int], wall: float) -> Iterator[Used]:
    """Requests that came to an engine and ended in the minute before `wall`: read from the end of each file."""
    since = wall - _MINUTE_S
    for name, size in sizes.items():
        path, end = journal / name, size
        is_over = path.stat().st_mtime < since
        while end > 0 and not is_over:
            begin = max(0, end - _BACK_BYTES)
            block = _block(path, begin, end)
            # The first line of a block may begin before it: it is read with the block before.
            cut = 0 if begin == 0 else block.find(b"\n") + 1
            for used in _decoded(block[cut:].split(b"\n")):
                if used.at + used.total_s < since:
                    is_over = True
                elif used.attempts:
                    yield used
            # A line that is longer than a block is nothing of ours.
            end = begin + cut if cut < end - begin else begin


def _block(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


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


def _records(path: Path, offset: int, size: int) -> Iterator[Used]:
    """Those between `offset` and `size`. A file that is shorter was replaced, and is read from its beginning."""
    with path.open("rb") as file:
        at = offset if offset <= size else 0
        file.seek(at)
        rest = b""
        while data := file.read(min(_STEP_BYTES, size - at)):
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from _decoded(lines)


def _decoded(lines: Iterable[bytes]) -> Iterator[Used]:
    """What is no record, or not written to its end, is passed over."""
    for line in lines:
        try:
            yield _decode(within(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
