"""What keys and teams may use: never more than their bounds in any window, nothing leaked, the unused given back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.accounts import Account, Accounts, Asked, Reservation, rate_limit_lines
from modelyard.gateway.bounds import NEVER, SOON_S, MinuteWindow
from modelyard.gateway.keyring import Keyring
from modelyard.gateway.refusals import Refusal
from modelyard.records.keys import Budgets, KeyCreated, KeyRecord, Limits
from modelyard.records.spending import Spent, period_of

NOON = 1_700_049_600.0  # 2023-11-15 12:00 UTC
DAY_S = 86_400.0


def key(name: str, parent: str | None = None, limits: Limits | None = None, **budgets: int) -> KeyRecord:
    return KeyRecord(
        id=name,
        sha256="" if name.startswith("team") else "f" * 64,
        name=name,
        created_at=0.0,
        parent=parent,
        limits=limits or Limits(),
        budgets=Budgets(**budgets),
    )


class Books:
    """Accounts of a few keys, asked by name."""

    def __init__(self, *keys: KeyRecord) -> None:
        self.keyring = Keyring()
        for one in keys:
            self.keyring.apply(KeyCreated(key=one))
        self.accounts = Accounts(self.keyring)

    def line(self, name: str) -> tuple[Account, ...]:
        return self.accounts.line(self.keyring.keys[name])

    def reserve(self, name: str, tokens: int = 1, cost: int = 0, now: float = 0.0, at: float = NOON) -> Reservation:
        return self.accounts.reserve(self.line(name), Asked(tokens, cost, at), now, "req_1")

    def refusal(self, name: str, tokens: int = 1, cost: int = 0, now: float = 0.0, at: float = NOON) -> Refusal:
        with pytest.raises(Refusal) as refused:
            self.reserve(name, tokens, cost, now, at)
        assert refused.value.status == 429
        return refused.value


# A minute.


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 12)), max_size=60), st.integers(1, 30))
def test_no_minute_wherever_it_begins_holds_more_than_was_allowed(asked: list[tuple[float, int]], most: int) -> None:
    window, now, taken = MinuteWindow(most), 1000.0, list[tuple[float, int]]()
    for pause_s, amount in asked:
        now += pause_s
        if window.wait_s(amount, now) == 0:
            window.take(amount, now)
            taken.append((now, amount))
    for begin, _ in taken:
        assert sum(amount for at, amount in taken if begin <= at < begin + 60) <= most


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 12)), min_size=1, max_size=40), st.integers(12, 30))
def test_who_comes_back_when_told_to_is_let_in_and_never_waits_longer_than_61_s(
    asked: list[tuple[float, int]], most: int
) -> None:
    window, now = MinuteWindow(most), 1000.0
    for pause_s, amount in asked:
        now += pause_s
        wait_s = window.wait_s(amount, now)
        assert 0 <= wait_s <= 61
        now += wait_s
        assert window.wait_s(amount, now) == 0
        window.take(amount, now)


def test_more_than_a_minute_ever_holds_is_never_let_in() -> None:
    assert MinuteWindow(10).wait_s(11, 5.0) == NEVER


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(0, 9), st.integers(0, 9), st.floats(0, 100)), max_size=30),
)
def test_a_window_in_which_all_is_corrected_to_nothing_is_empty(
    asked: list[tuple[float, int, int, float]],
) -> None:
    window, now = MinuteWindow(9), 1000.0
    for pause_s, taken, _, lasts_s in asked:
        now += pause_s
        window.take(taken, now)
        window.correct(taken, 0, now, now + lasts_s)
        now += lasts_s
        assert window.used == 0 and window.empty_in_s(now) == 0


def test_what_is_used_beyond_the_reservation_counts_from_when_it_is_known() -> None:
    window = MinuteWindow(10)
    window.take(5, 0.0)
    window.correct(5, 12, 0.0, 50.0)
    assert window.used == 12 and window.left(50.0) == 0
    assert window.left(62.0) == 3
    assert window.left(112.0) == 10


def test_a_window_that_is_younger_than_a_request_gives_back_no_more_than_it_holds() -> None:
    window = MinuteWindow(10)
    window.take(2, 5.0)
    window.correct(8, 1, 5.0, 6.0)
    assert window.used == 0 and window.left(6.0) == 10


# A line.


def test_every_node_of_the_line_has_its_own_bound_and_the_refusal_names_it() -> None:
    books = Books(
        key("team-all", limits=Limits(requests_per_minute=3)),
        key("a", "team-all", Limits(requests_per_minute=2)),
        key("b", "team-all"),
    )
    books.reserve("a")
    books.reserve("a")
    of_key = books.refusal("a")
    assert of_key.message == "the limit of 2 requests per minute (key 'a')"
    books.reserve("b")
    of_team = books.refusal("b")
    assert of_team.message == "the limit of 3 requests per minute (team 'team-all')"
    assert (of_team.code, of_team.retry_after_s) == ("rate_limit_exceeded", 61)


def test_the_bound_that_gives_way_last_is_the_one_that_is_told() -> None:
    books = Books(
        key("team-all", limits=Limits(requests_per_minute=1)), key("a", "team-all", Limits(concurrent_requests=1))
    )
    books.reserve("a")
    assert "team 'team-all'" in books.refusal("a").message


def test_a_refusal_takes_nothing_anywhere() -> None:
    books = Books(key("team-t", limits=Limits(requests_per_minute=9)), key("a", "team-t", Limits(tokens_per_minute=10)))
    for _ in range(20):
        books.refusal("a", tokens=11)
    windows = [window for one in books.line("a") for window in (one.requests, one.tokens) if window is not None]
    assert len(windows) == 2 and not any(window.used for window in windows)
    assert not any(one.in_flight for one in books.line("a"))


def test_keys_that_nothing_bounds_have_no_account() -> None:
    books = Books(key("team-t"), key("a", "team-t"))
    assert books.line("a") == ()


def test_new_bounds_hold_at_once_and_what_was_used_stays_used() -> None:
    books = Books(key("a", limits=Limits(requests_per_minute=5)))
    for _ in range(3):
        books.reserve("a")
    books.keyring.apply(KeyCreated(key=key("a", limits=Limits(requests_per_minute=3))))
    assert "3 requests per minute" in books.refusal("a").message


def test_requests_at_once_are_given_back_by_settling() -> None:
    books = Books(key("a", limits=Limits(concurrent_requests=2)))
    first, _ = books.reserve("a"), books.reserve("a")
    refusal = books.refusal("a")
    assert "2 requests at once" in refusal.message and refusal.retry_after_s == 1
    first.settle(0, 0, 1.0)
    books.reserve("a")


def test_a_reservation_settles_once() -> None:
    reservation = Books(key("a", limits=Limits(concurrent_requests=2))).reserve("a")
    reservation.settle(1, 0, 0.0)
    with pytest.raises(AssertionError, match="settles once"):
        reservation.settle(1, 0, 0.0)


def test_tokens_are_reserved_first_and_what_was_not_used_comes_back() -> None:
    books = Books(key("a", limits=Limits(tokens_per_minute=1000)))
    first = books.reserve("a", tokens=900)
    refusal = books.refusal("a", tokens=200, now=2.0)
    assert refusal.retry_after_s == SOON_S, "what requests in flight hold may come back at any moment"
    first.settle(100, 0, 3.0)
    books.reserve("a", tokens=900, now=3.0)


def test_what_no_minute_can_hold_is_told_so_without_a_time_to_come_back() -> None:
    refusal = Books(key("a", limits=Limits(tokens_per_minute=100))).refusal("a", tokens=101)
    assert refusal.retry_after_s is None and "lower max_tokens" in refusal.message
    assert ("x-should-retry", "false") in refusal.fields


def test_what_is_left_is_said_as_openai_says_it_and_for_the_node_with_the_least() -> None:
    books = Books(
        key("team-t", limits=Limits(requests_per_minute=60, tokens_per_minute=500)),
        key("a", "team-t", Limits(requests_per_minute=10)),
    )
    books.reserve("a", tokens=120, now=7.5)
    assert rate_limit_lines(books.line("a"), 7.5).splitlines() == [
        "x-ratelimit-limit-requests: 10",
        "x-ratelimit-remaining-requests: 9",
        "x-ratelimit-reset-requests: 1m1s",
        "x-ratelimit-limit-tokens: 500",
        "x-ratelimit-remaining-tokens: 380",
        "x-ratelimit-reset-tokens: 1m1s",
    ]
    assert "x-ratelimit-reset-requests: 1s\r\n" in rate_limit_lines(books.line("a"), 67.5)
    assert "x-ratelimit-reset-requests: 0s\r\n" in rate_limit_lines(books.line("a"), 68.0)
    assert rate_limit_lines(Books(key("b", None, None, tokens_per_day=5)).line("b"), 0.0) == ""


# Budgets.


def test_a_budget_is_spent_in_tokens_and_in_money_and_comes_back_with_the_next_day() -> None:
    for tokens, cost, what in ((80, 0, "100 tokens per day"), (1, 800_000_000_000, "1.00 per day")):
        books = Books(key("a", None, None, tokens_per_day=100, pico_per_day=10**12))
        books.reserve("a", tokens, cost).settle(tokens, cost, 1.0)
        refusal = books.refusal("a", 80, 800_000_000_000)
        assert (refusal.code, refusal.retry_after_s) == ("insufficient_quota", DAY_S / 2)
        assert what in refusal.message and "(key 'a')" in refusal.message
        assert ("x-should-retry", "false") in refusal.fields
        books.reserve("a", 80, 800_000_000_000, at=NOON + DAY_S)


def test_a_months_budget_ends_with_the_month() -> None:
    books = Books(key("a", None, None, tokens_per_month=100))
    books.reserve("a", 100).settle(100, 0, 1.0)
    assert books.refusal("a").retry_after_s == 15.5 * DAY_S  # noon of the 15th to the end of the 30th
    books.reserve("a", at=NOON + 15.5 * DAY_S)


def test_what_requests_in_flight_hold_of_a_budget_is_no_spent_budget() -> None:
    books = Books(key("a", None, None, tokens_per_day=100))
    held = books.reserve("a", 90)
    refusal = books.refusal("a", 20)
    assert (refusal.code, refusal.retry_after_s) == ("rate_limit_exceeded", 1)
    held.settle(10, 0, 1.0)
    books.reserve("a", 90)


def test_a_request_counts_in_the_day_that_it_began_in() -> None:
    books = Books(key("a", None, None, tokens_per_day=100))
    yesterday = books.reserve("a", 100, at=NOON)
    today = books.reserve("a", 100, at=NOON + DAY_S)
    yesterday.settle(100, 0, 1.0)
    today.settle(0, 0, 1.0)
    books.reserve("a", 100, at=NOON + DAY_S)


def test_a_clock_that_jumps_to_another_day_and_back_forgets_nothing() -> None:
    books = Books(key("a", None, None, tokens_per_day=100))
    books.reserve("a", 100).settle(100, 0, 1.0)
    for jump_s in (DAY_S, -DAY_S):
        books.reserve("a", 1, at=NOON + jump_s)
        assert books.refusal("a").code == "insufficient_quota"


def test_what_was_spent_before_counts_at_every_node_of_the_line() -> None:
    books = Books(key("team-t", None, None, pico_per_day=10), key("a", "team-t", None, tokens_per_month=50))
    spent = Spent(day_tokens=1, day_pico=8, month_tokens=45, month_pico=9)
    books.accounts.spent(books.keyring.keys["a"], spent, period_of(NOON), books.keyring.keys)
    assert "tokens per month" in books.refusal("a", 6).message
    assert "team 'team-t'" in books.refusal("a", 1, 3).message
    books.reserve("a", 5, 2)


Step = tuple[float, int, int, int, bool]


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 2), st.integers(0, 40), st.integers(0, 40), st.booleans()),
        max_size=60,
    )
)
def test_whatever_comes_no_bound_is_passed_and_no_reservation_leaks(steps: list[Step]) -> None:
    """Requests of two keys below a team, ending in any order; what is used stays within what was reserved."""
    limits = Limits(requests_per_minute=8, tokens_per_minute=100, concurrent_requests=3)
    books = Books(
        key("team-t", limits=limits, tokens_per_day=300, pico_per_month=250),
        key("a", "team-t", Limits(requests_per_minute=5), tokens_per_day=200),
        key("b", "team-t"),
    )
    now, open_ones, used = 0.0, list[tuple[float, int, Reservation]](), list[tuple[float, int]]()
    for pause_s, who, tokens, part, ends in steps:
        now += pause_s
        if ends and open_ones:
            at, reserved, reservation = open_ones.pop(part % len(open_ones))
            reservation.settle(min(part, reserved), min(part, reserved), now)
            used.append((at, min(part, reserved)))
            continue
        try:
            open_ones.append((now, tokens, books.reserve("ab"[who % 2], tokens, tokens, now)))
        except Refusal as refusal:
            assert refusal.retry_after_s is None or refusal.retry_after_s >= 1
        assert len(open_ones) <= 3
    began = [at for at, _, _ in open_ones] + [at for at, _ in used]
    for begin in began:
        assert sum(begin <= at < begin + 60 for at in began) <= 8
        assert sum(tokens for at, tokens in used if begin <= at < begin + 60) <= 100
    assert sum(tokens for _, tokens in used) <= 250
    for _, _, reservation in open_ones:
        reservation.settle(0, 0, now)
    for account in (*books.line("a"), *books.line("b")):
        assert account.in_flight == 0
        assert not list(_held(account))
        for window in (account.requests, account.tokens):
            if window is not None:
                assert window.used == sum(window._slots)
                assert window.left(now + 61) == window.most


def _held(account: Account) -> Iterator[int]:
    for budget in (account._day, account._month):
        if budget is not None:
            yield from (
                held for used in budget._periods.values() for held in (used.held_tokens, used.held_pico) if held
            )


def test_the_months_of_a_century_follow_each_other() -> None:
    """Each day lies in the month of the day before or in the next one."""
    months = [period_of(day * DAY_S).month for day in range(36_525)]
    steps = [after - before for before, after in pairwise(months)]
    assert set(steps) == {0, 1} and months[-1] - months[0] == 1199
