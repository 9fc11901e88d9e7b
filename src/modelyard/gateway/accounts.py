"""What a key and all above it may still use: minute windows, requests at once, budgets.

State without I/O. A request reserves at every node of its key's line or at none, and settles exactly once: what it did
not use goes back. Keys that nothing bounds have no account and cost one look-up."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from modelyard.gateway.asking import Wanted
from modelyard.gateway.bounds import NEVER, SOON_S, Budget, MinuteWindow, Short
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.records.keys import NO_BUDGET, KeyRecord
from modelyard.records.spending import Period, Spent, period_of


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request may use at most, as far as that can be told: `tokens` of prompt and answer, `cost_pico` for them.
    `at` is its first byte in Unix seconds, which decides the day that it counts in, here as in the journal."""

    tokens: int
    cost_pico: int
    at: float


class Account:
    """One node of a line: a key or a team that bounds what is used by it and below it. What it does not bound it does
    not count."""

    __slots__ = ("_at_once", "_day", "_held_tokens", "_month", "in_flight", "node", "requests", "tokens")

    def __init__(self, node: KeyRecord) -> None:
        self.in_flight = 0
        self._held_tokens = 0
        self.requests: MinuteWindow | None = None
        self.tokens: MinuteWindow | None = None
        self._day: Budget | None = None
        self._month: Budget | None = None
        self.bound(node)

    def bound(self, node: KeyRecord) -> None:
        """The node says these bounds now; what was counted stays counted."""
        self.node = node
        limits, budgets = node.limits, node.budgets
        self._at_once = limits.concurrent_requests
        self.requests = _window(self.requests, limits.requests_per_minute)
        self.tokens = _window(self.tokens, limits.tokens_per_minute)
        if budgets == NO_BUDGET:
            self._day = self._month = None
        else:
            # Both are counted where one of them is bounded, so that the other may be bounded later in the same month.
            self._day = _budget("day", self._day, budgets.tokens_per_day, budgets.pico_per_day)
            self._month = _budget("month", self._month, budgets.tokens_per_month, budgets.pico_per_month)

    def short(self, asked: Asked, now: float, period: Period) -> Short | None:
        """What is missing for `asked`; None where it can be had. Nothing is taken."""
        if self._at_once is not None and self.in_flight >= self._at_once:
            return Short(f"the limit of {self._at_once} requests at once", SOON_S)
        if (window := self.requests) is not None and (wait_s := window.wait_s(1, now)) > 0:
            return Short(f"the limit of {window.most} requests per minute", wait_s)
        if (window := self.tokens) is not None and (wait_s := window.wait_s(asked.tokens, now)) > 0:
            if wait_s < NEVER and window.used - self._held_tokens + asked.tokens <= window.most:
                wait_s = min(wait_s, SOON_S)
            what = f"the limit of {window.most} tokens per minute: this request may take {asked.tokens}"
            return Short(what, wait_s)
        for budget in (self._day, self._month):
            if budget is not None and (short := budget.short(asked.tokens, asked.cost_pico, period, asked.at)):
                return short
        return None

    def take(self, asked: Asked, now: float, period: Period) -> None:
        if (window := self.requests) is not None:
            window.take(1, now)
        if (window := self.tokens) is not None:
            window.take(asked.tokens, now)
        self._hold(asked, period)

    def retake(self, asked: Asked, taken_at: float, now: float, period: Period) -> None:
        """`asked` was taken at `taken_at` of an account that another worker kept, and is held still."""
        self.used(1, asked.tokens, taken_at, now)
        self._hold(asked, period)

    def _hold(self, asked: Asked, period: Period) -> None:
        self.in_flight += 1
        if self.tokens is not None:
            self._held_tokens += asked.tokens
        if (budget := self._day) is not None:
            budget.hold(asked.tokens, asked.cost_pico, period)
        if (budget := self._month) is not None:
            budget.hold(asked.tokens, asked.cost_pico, period)

    def used(self, requests: int, tokens: int, at: float, now: float) -> None:
        """What had been used of the present minute at `at`, before it was known here."""
        if (window := self.requests) is not None:
            window.put(requests, at, now)
        if (window := self.tokens) is not None:
            window.put(tokens, at, now)

    def settle(self, asked: Asked, taken_at: float, period: Period, tokens: int, cost_pico: int, now: float) -> None:
        """Of what `asked` took at `taken_at`, `tokens` and `cost_pico` were used."""
        self.in_flight -= 1
        if (window := self.tokens) is not None:
            self._held_tokens -= asked.tokens
            window.correct(asked.tokens, tokens, taken_at, now)
        if (budget := self._day) is not None:
            budget.settle(asked.tokens, asked.cost_pico, tokens, cost_pico, period)
        if (budget := self._month) is not None:
            budget.settle(asked.tokens, asked.cost_pico, tokens, cost_pico, period)

    def begin_budgets(self, node: KeyRecord) -> None:
        """As if nothing had been spent of them."""
        self._day = self._month = None
        self.bound(node)

    def spent(self, spent: Spent, period: Period) -> None:
        """Used before there was this account."""
        if self._day is not None:
            self._day.settle(0, 0, spent.day_tokens, spent.day_pico, period)
        if self._month is not None:
            self._month.settle(0, 0, spent.month_tokens, spent.month_pico, period)


def _window(window: MinuteWindow | None, most: int | None) -> MinuteWindow | None:
    if most is None:
        return None
    if window is None:
        return MinuteWindow(most)
    window.most = most
    return window


def _budget(word: Literal["day", "month"], budget: Budget | None, tokens: int | None, pico: int | None) -> Budget:
    if budget is None:
        return Budget(word, tokens, pico)
    budget.most_tokens, budget.most_pico = tokens, pico
    return budget


class Reservation:
    """What one request holds at each account of its line, until it settles: exactly once. `lines` are header lines
    about what is left."""

    __slots__ = ("_asked", "_at", "_line", "_period", "lines")

    def __init__(self, line: tuple[Account, ...], asked: Asked, at: float, period: Period, lines: bytes = b"") -> None:
        self._line, self._asked, self._at, self._period = line, asked, at, period
        self.lines = lines

    @property
    def wanted(self) -> Wanted | None:
        """What its door has to be told: where accounts are shared, another worker may have yet to say yes."""
        return None

    def settle(self, tokens: int, cost_pico: int, now: float) -> None:
        """`tokens` and `cost_pico` were used; the rest of what was reserved goes back."""
        line, self._line = self._line, ()
        assert line, "a reservation settles once"
        for account in line:
            account.settle(self._asked, self._at, self._period, tokens, cost_pico, now)


class Accounts:
    """The accounts of a worker. A key's `line` holds those that bound it: none, for most. `are_kept` where they are
    what decides; other workers' may be."""

    def __init__(self, keyring: Keyring) -> None:
        self.are_kept = True
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

    def reserve(self, line: tuple[Account, ...], asked: Asked, now: float, request_id: str) -> Reservation:
        """Take `asked` at every account of the line, which has at least one. Raises Refusal (429), with nothing taken,
        naming the bound that gives way last."""
        period = period_of(asked.at)
        worst: tuple[Account, Short] | None = None
        for account in line:
            short = account.short(asked, now, period)
            if short is not None and (worst is None or short.wait_s > worst[1].wait_s):
                worst = account, short
        if worst is not None:
            raise _refusal(*worst, rate_limit_lines(line, now))
        for account in line:
            account.take(asked, now, period)
        return Reservation(line, asked, now, period, rate_limit_lines(line, now).encode())

    def begin_budgets(self, nodes: Iterable[str]) -> None:
        """The budgets of these nodes (ids) are new, whatever was counted for those that they had once."""
        for node in nodes:
            if (account := self._accounts.get(node)) is not None:
                account.begin_budgets(self._keyring.keys[node])

    def spent(self, key: KeyRecord, spent: Spent, period: Period, of: Collection[str]) -> None:
        """Count what the key's requests of a day and of a month had used before the nodes `of` (ids) had a budget."""
        for account in self.line(key):
            if account.node.id in of:
                account.spent(spent, period)

    def used(self, key: KeyRecord, tokens: int, at: float, now: float) -> None:
        """Count a request of the last minute that was answered before this worker began, or by another one."""
        for account in self.line(key):
            account.used(1, tokens, at, now)

    def clear(self) -> None:
        """Forget everything that was counted; what is reserved settles with nobody."""
        self._accounts.clear()
        self._lines.clear()


def rate_limit_lines(line: tuple[Account, ...], now: float) -> str:
    """Header lines that say what is left of the minute's limits, of the node with the least left: names and forms as
    OpenAI documents them under "Rate limits in headers". Empty where nothing bounds a minute."""
    requests = [one.requests for one in line if one.requests is not None]
    tokens = [one.tokens for one in line if one.tokens is not None]
    lines = _left("requests", requests, now) if requests else ""
    return lines + _left("tokens", tokens, now) if tokens else lines


def _left(what: str, windows: list[MinuteWindow], now: float) -> str:
    window = windows[0] if len(windows) == 1 else min(windows, key=lambda one: one.left(now))
    left, reset_s = window.left(now), math.ceil(window.empty_in_s(now))
    reset = f"1m{reset_s - 60}s" if reset_s >= 60 else f"{reset_s}s"
    return (
        f"x-ratelimit-limit-{what}: {window.most}\r\nx-ratelimit-remaining-{what}: {left}\r\n"
        f"x-ratelimit-reset-{what}: {reset}\r\n"
    )


def _refusal(account: Account, short: Short, lines: str) -> Refusal:
    fields = [(name, value) for name, _, value in (one.partition(": ") for one in lines.splitlines())]
    message, wait_s = f"{short.what} ({account.node.title})", short.wait_s
    if wait_s == NEVER:
        message += "; shorten the prompt or lower max_tokens"
    if wait_s == NEVER or short.code == "insufficient_quota":
        # OpenAI's clients would ask the same again by themselves, and wait in vain.
        fields.append(("x-should-retry", "false"))
    retry_after_s = None if wait_s == NEVER else math.ceil(wait_s)
    return Refusal(429, message, code=short.code, retry_after_s=retry_after_s, fields=tuple(fields))
