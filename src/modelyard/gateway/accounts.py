"""What a key and all above it may still use: minute windows, requests at once, budgets.

State without I/O. A request reserves at every node of its key's line or at none, and settles exactly once: what it did
not use goes back. Keys that nothing bounds have no account and cost one look-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelyard.gateway.bounds import NEVER, SOON_S, Budget, MinuteWindow, Short
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.records.keys import KeyRecord
from modelyard.records.spending import Period, Spent, period_of

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request may use at most, as far as that can be told: `tokens` of prompt and answer, `cost_pico` for them.
    `at` is its first byte in Unix seconds, which decides the day that it counts in, here as in the journal."""

    tokens: int
    cost_pico: int
    at: float


class Account:
    """One node of a line: a key or a team that bounds what is used by it and below it."""

    __slots__ = ("_day", "_held_tokens", "_month", "in_flight", "node", "requests", "tokens")

    def __init__(self, node: KeyRecord) -> None:
        self.node = node
        self.in_flight = 0
        self._held_tokens = 0
        self.requests = MinuteWindow()
        self.tokens = MinuteWindow()
        self._day = Budget("day", node.budgets.tokens_per_day, node.budgets.pico_per_day)
        self._month = Budget("month", node.budgets.tokens_per_month, node.budgets.pico_per_month)

    def bound(self, node: KeyRecord) -> None:
        """The node says other bounds now; what was used stays used."""
        self.node = node
        self._day.bound(node.budgets.tokens_per_day, node.budgets.pico_per_day)
        self._month.bound(node.budgets.tokens_per_month, node.budgets.pico_per_month)

    def short(self, asked: Asked, now: float, period: Period) -> Short | None:
        """What is missing for `asked`; None where it can be had. Nothing is taken."""
        limits = self.node.limits
        if (most := limits.concurrent_requests) is not None and self.in_flight >= most:
            return Short(f"the limit of {most} requests at once", SOON_S)
        if (most := limits.requests_per_minute) is not None:
            wait_s = self.requests.wait_s(1, most, now)
            if wait_s > 0:
                return Short(f"the limit of {most} requests per minute", wait_s)
        if (most := limits.tokens_per_minute) is not None:
            wait_s = self._tokens_wait_s(asked.tokens, most, now)
            if wait_s > 0:
                what = f"the limit of {most} tokens per minute: this request may take {asked.tokens}"
                return Short(what, wait_s)
        return self._day.short(asked.tokens, asked.cost_pico, period, asked.at) or self._month.short(
            asked.tokens, asked.cost_pico, period, asked.at
        )

    def _tokens_wait_s(self, tokens: int, most: int, now: float) -> float:
        wait_s = self.tokens.wait_s(tokens, most, now)
        if SOON_S < wait_s < NEVER and self.tokens.used - self._held_tokens + tokens <= most:
            return SOON_S
        return wait_s

    def take(self, asked: Asked, now: float, period: Period) -> None:
        self.in_flight += 1
        self._held_tokens += asked.tokens
        self.requests.take(1, now)
        self.tokens.take(asked.tokens, now)
        self._day.hold(asked.tokens, asked.cost_pico, period)
        self._month.hold(asked.tokens, asked.cost_pico, period)

    def give_back(self, asked: Asked, taken_at: float, tokens: int, now: float, period: Period) -> None:
        """What `asked` took at `taken_at`, but for the `tokens` that were used."""
        self.in_flight -= 1
        self._held_tokens -= asked.tokens
        self.tokens.correct(asked.tokens, tokens, taken_at, now)
        self._day.release(asked.tokens, asked.cost_pico, period)
        self._month.release(asked.tokens, asked.cost_pico, period)

    def spent(self, spent: Spent, period: Period) -> None:
        self._day.spend(spent.day_tokens, spent.day_pico, period)
        self._month.spend(spent.month_tokens, spent.month_pico, period)

    def spend(self, tokens: int, cost_pico: int, period: Period) -> None:
        self._day.spend(tokens, cost_pico, period)
        self._month.spend(tokens, cost_pico, period)


class Reservation:
    """What one request holds at each account of its line, until it settles: exactly once."""

    __slots__ = ("_asked", "_at", "_line")

    def __init__(self, line: tuple[Account, ...], asked: Asked, at: float) -> None:
        self._line, self._asked, self._at = line, asked, at

    def settle(self, tokens: int, cost_pico: int, now: float) -> None:
        """`tokens` and `cost_pico` were used; the rest of what was reserved goes back."""
        line, self._line = self._line, ()
        assert line, "a reservation settles once"
        period = period_of(self._asked.at)
        for account in line:
            account.give_back(self._asked, self._at, tokens, now, period)
            account.spend(tokens, cost_pico, period)


class Accounts:
    """The accounts of a worker. A key's `line` holds those that bound it: none, for most."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._version = -1
        self._accounts: dict[str, Account] = {}
        self._lines: dict[str, tuple[Account, ...]] = {}

    def line(self, key: KeyRecord) -> tuple[Account, ...]:
        """The accounts of the key and of those above it that bound anything, the key's own first."""
        if self._version != self._keyring.version:
            self._lines.clear()
            self._version = self._keyring.version
        line = self._lines.get(key.id)
        if line is None:
            line = self._lines[key.id] = tuple(self._of(node) for node in self._keyring.line(key) if node.is_bounded)
        return line

    def _of(self, node: KeyRecord) -> Account:
        account = self._accounts.get(node.id)
        if account is None:
            account = self._accounts[node.id] = Account(node)
        elif account.node is not node:
            account.bound(node)
        return account

    def reserve(self, line: tuple[Account, ...], asked: Asked, now: float) -> Reservation:
        """Take `asked` at every account of the line. Raises Refusal (429), with nothing taken, naming the bound that
        gives way last."""
        period = period_of(asked.at)
        worst: tuple[Account, Short] | None = None
        for account in line:
            short = account.short(asked, now, period)
            if short is not None and (worst is None or short.wait_s > worst[1].wait_s):
                worst = account, short
        if worst is not None:
            raise _refusal(*worst, rate_limit_fields(line, now))
        for account in line:
            account.take(asked, now, period)
        return Reservation(line, asked, now)

    def spent(self, key: KeyRecord, spent: Spent, period: Period) -> None:
        """Count what the key's requests of a day and of a month had used before this worker began."""
        for account in self.line(key):
            account.spent(spent, period)


def rate_limit_fields(line: tuple[Account, ...], now: float) -> Fields:
    """Header fields that say what is left of the minute's limits, of the node with the least left: names and forms as
    OpenAI documents them under "Rate limits in headers". Empty where nothing bounds a minute."""
    requests = [(one.node.limits.requests_per_minute, one.requests) for one in line]
    tokens = [(one.node.limits.tokens_per_minute, one.tokens) for one in line]
    return (*_left("requests", requests, now), *_left("tokens", tokens, now))


def _left(what: str, windows: list[tuple[int | None, MinuteWindow]], now: float) -> Fields:
    bound = [(window.left(most, now), most, window) for most, window in windows if most is not None]
    if not bound:
        return ()
    left, most, window = min(bound, key=lambda one: one[0])
    return (
        (f"x-ratelimit-limit-{what}", str(most)),
        (f"x-ratelimit-remaining-{what}", str(left)),
        (f"x-ratelimit-reset-{what}", _duration(window.empty_in_s(now))),
    )


def _duration(seconds: float) -> str:
    """`1s`, `1m1s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _refusal(account: Account, short: Short, fields: Fields) -> Refusal:
    message, wait_s = f"{short.what} ({account.node.title})", short.wait_s
    if wait_s == NEVER:
        message += "; shorten the prompt or lower max_tokens"
    if wait_s == NEVER or short.code == "insufficient_quota":
        # OpenAI's clients would ask the same again by themselves, and wait in vain.
        fields = (*fields, ("x-should-retry", "false"))
    retry_after_s = None if wait_s == NEVER else math.ceil(wait_s)
    return Refusal(429, message, code=short.code, retry_after_s=retry_after_s, fields=fields)
