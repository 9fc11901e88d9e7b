"""What had been used before this worker counted: control's sums, and what the journal holds beyond them.

Nothing that stands in the journal is forgotten, however the gateway before this one ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

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


def seed(
    accounts: Accounts, keyring: Keyring, spending: Path, journal: Path, wall: float, now: float
) -> dict[str, int]:
    """Count what was used in the day and the month of `wall` (Unix seconds; `now` is the same moment in monotonic
    ones), and in the minute before it, for the keys that are bounded. Returns how far each file of the journal was
    counted, in bytes."""
    sizes = sizes_of(journal)
    period = period_of(wall)
    budgeted = {key.id for key in keyring.keys.values() if any(one.budgets != NO_BUDGET for one in keyring.line(key))}
    if budgeted:
        for key_id, spent in spent_until_now(spending, journal, sizes, period).items():
            if key_id in budgeted:
                accounts.spent(keyring.keys[key_id], spent, period)
    limited = {key.id for key in keyring.keys.values() if any(one.limits != UNLIMITED for one in keyring.line(key))}
    if limited:
        for used in _last_minute(journal, sizes, wall):
            if used.key_id in limited:
                ended = now - (wall - used.at - used.total_s)
                accounts.used(keyring.keys[used.key_id], used.tokens, ended, now)
    return sizes


def sizes_of(journal: Path) -> dict[str, int]:
    """Of each of its files, by name, in bytes."""
    return {path.name: path.stat().st_size for path in sorted(journal.glob("*.ndjson"))}


def ended(journal: Path, name: str, requests: Iterable[str]) -> tuple[dict[str, Used], int]:
    """Of `requests`, whose worker has just ended, those whose records stand at the end of its file, by their ids; and
    the size of the file. A request is in both or in neither: its record is written in the turn of the event loop in
    which its end is told."""
    path, wanted = journal / name, set(requests)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return {}, 0
    found = _records(path, max(0, size - _BACK_BYTES), size) if wanted else ()
    return {used.request_id: used for used in found if used.request_id in wanted}, size


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
            end = begin + cut if cut else begin


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
