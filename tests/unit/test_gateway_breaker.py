"""When a replica is taken out, for how long, and how it comes back; how much may be sent a second time."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.breaker import CLOSED, JITTER, WINDOW_S, Breaker, Event, learned, probed, stepped
from modelyard.gateway.budget import MOST_KEPT, Budget
from modelyard.records.topology import Failover

LIMITS = Failover()


def after(events: list[Event], now: float = 0.0, breaker: Breaker = CLOSED) -> Breaker:
    return reduce(lambda one, event: learned(one, event, now, LIMITS, 0.0), events, breaker)


def opened(times: int = 1, now: float = 0.0) -> Breaker:
    """One that has opened so often, without having answered in between."""
    breaker = after(["lost"] * LIMITS.eject_after, now)
    for _ in range(times - 1):
        breaker = after(["lost"], breaker.until, stepped(breaker, breaker.until))
    return breaker


def test_lost_connections_in_a_row_open_it() -> None:
    assert not after(["lost"] * (LIMITS.eject_after - 1)).takes_none
    assert after(["lost"] * LIMITS.eject_after).takes_none


def test_an_answer_in_between_begins_the_row_anew() -> None:
    almost: list[Event] = ["lost"] * (LIMITS.eject_after - 1)
    assert not after([*almost, "answered", *almost]).takes_none


def test_what_an_engine_says_itself_opens_it_by_share_only() -> None:
    assert not after(["erred"] * (LIMITS.eject_volume - 1)).takes_none, "too few to judge"
    assert after(["erred"] * LIMITS.eject_volume).takes_none
    assert not after([*["erred"] * 9, *["answered"] * 40, *["erred"] * 9]).takes_none, "the smaller part"


def test_failures_of_another_window_are_forgotten() -> None:
    breaker = after(["erred"] * (LIMITS.eject_volume - 1))
    assert not after(["erred"], WINDOW_S + 1, breaker).takes_none


def test_it_half_opens_after_its_time_and_one_request_may_try() -> None:
    breaker = opened()
    assert stepped(breaker, breaker.until - 0.01).takes_none
    half = stepped(breaker, breaker.until)
    assert half.state == "half_open" and not half.takes_none
    assert probed(half).takes_none, "one, not two"
    assert not after(["withdrawn"], 2.0, probed(half)).takes_none, "the one that tried has left: another may"
    assert after(["answered"], 2.0, probed(half)).state == "closed"
    assert after(["erred"], 2.0, probed(half)).state == "open"


def test_each_opening_without_an_answer_is_twice_as_long_up_to_a_bound() -> None:
    lengths = []
    breaker = opened(now=0.0)
    began = 0.0
    for _ in range(8):
        lengths.append(breaker.until - began)
        began = breaker.until
        breaker = after(["lost"], began, probed(stepped(breaker, began)))
    assert lengths == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


@given(st.floats(0, 1, exclude_max=True))
def test_chance_makes_an_opening_longer_within_its_bound(chance: float) -> None:
    breaker = CLOSED
    for _ in range(LIMITS.eject_after):
        breaker = learned(breaker, "lost", 0.0, LIMITS, chance)
    assert LIMITS.eject_s <= breaker.until <= LIMITS.eject_s * (1 + JITTER)


def test_openings_are_forgotten_after_a_long_time_without_any() -> None:
    breaker = opened(3)
    closed = after(["answered"], breaker.until, probed(stepped(breaker, breaker.until)))
    assert closed.openings == 3
    assert stepped(closed, breaker.until + WINDOW_S + 1) is closed
    assert stepped(closed, closed.until + 0.1) is CLOSED


def test_an_answer_from_one_that_is_taken_out_lets_the_next_request_try() -> None:
    """It came to it in panic, or began before."""
    breaker = after(["answered"], 0.1, opened())
    assert breaker.state == "half_open" and not breaker.takes_none


def test_a_sound_one_costs_nothing() -> None:
    assert after(["answered", "withdrawn", "answered"]) is CLOSED


events = st.lists(
    st.tuples(st.sampled_from(["answered", "erred", "lost", "withdrawn", "step", "probe"]), st.floats(0, 20)),
    max_size=60,
)


@given(events)
def test_whatever_happens_one_that_answers_is_asked_again(said: list[tuple[str, float]]) -> None:
    now, breaker = 0.0, CLOSED
    for what, later in said:
        now += later
        if what == "step":
            breaker = stepped(breaker, now)
        elif what == "probe":
            breaker = probed(breaker)
        else:
            breaker = learned(breaker, what, now, LIMITS, 0.5)  # type: ignore[arg-type]
        assert breaker.until <= now + max(LIMITS.eject_most_s * (1 + JITTER), 120.0)
        assert not (breaker.probing and breaker.state != "half_open")
    now += LIMITS.eject_most_s * 2
    breaker = learned(probed(stepped(breaker, now)), "answered", now, LIMITS, 0.0)
    assert breaker.state == "closed" and not breaker.takes_none


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 5), st.integers(0, 30)), max_size=60))
def test_never_more_is_sent_again_than_the_share_and_the_rate_allow(steps: list[tuple[int, float, int]]) -> None:
    now, requests, retries = 100.0, 0, 0
    budget = Budget(at=now)
    for arrivals, later, wanted in steps:
        now, requests = now + later, requests + arrivals
        budget = budget.filled(requests, now, share=0.1, per_s=3.0)
        for _ in range(wanted):
            left = budget.spent()
            if left is None:
                break
            budget, retries = left, retries + 1
        assert retries <= 0.1 * requests + 3.0 * (now - 100.0) + 1e-6
        assert 0 <= budget.tokens <= MOST_KEPT


def test_what_a_quiet_time_leaves_is_kept_up_to_a_bound() -> None:
    assert Budget(at=0.0).filled(0, 3600.0, share=0.1, per_s=3.0).tokens == MOST_KEPT


def test_nothing_is_sent_again_without_requests_or_time() -> None:
    assert Budget(at=5.0).filled(0, 5.0, share=0.1, per_s=3.0).spent() is None
