"""What is expected of a first token: by the size of what is read, near the least, upwards only without a crowd."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.first_tokens import FirstTokens

FRESH = st.integers(0, 1 << 20)
SECONDS = st.floats(0.001, 1000)


def learned(*samples: tuple[int, float], is_calm: bool = True) -> FirstTokens:
    expected = FirstTokens()
    for fresh, first_s in samples:
        expected.learn(fresh, first_s, 4 * expected.expected_s(fresh) + 0.5, is_calm=is_calm)
    return expected


def test_nothing_is_expected_before_anything_was_seen() -> None:
    assert FirstTokens().expected_s(100) == 0


def test_the_first_one_of_a_size_is_what_is_expected_of_it() -> None:
    expected = learned((100, 0.2), (1000, 1.5))
    assert expected.expected_s(100) == 0.2
    assert expected.expected_s(1000) == 1.5


def test_a_size_that_was_never_seen_follows_from_others() -> None:
    expected = learned((100, 0.2))
    assert expected.expected_s(10) == 0.2, "a shorter prompt takes no longer"
    assert expected.expected_s(200) == 0.4
    assert expected.expected_s(800) == 1.6
    assert learned((100, 0.2), (800, 1.0)).expected_s(200) == 0.4, "the least that follows from any of them"


def test_a_quicker_one_lowers_it_even_in_a_crowd() -> None:
    expected = learned(*[(100, 1.0)] * 3, *[(100, 0.2)] * 60, is_calm=False)
    assert 0.2 <= expected.expected_s(100) < 0.21


def test_a_slower_one_raises_it_only_without_a_crowd() -> None:
    samples = [(100, 0.2), *[(100, 2.0)] * 200]
    assert learned(*samples, is_calm=False).expected_s(100) == 0.2
    assert 1.5 < learned(*samples).expected_s(100) <= 2.0


def test_one_that_hung_is_no_measure() -> None:
    expected = learned((100, 0.2), (100, 3600.0))
    assert expected.expected_s(100) < 0.23


def test_prompts_from_a_cache_that_nobody_tells_of_do_not_take_it_over() -> None:
    dice = random.Random(1)
    expected = learned(*[(1000, dice.choice((0.05, 2.0))) for _ in range(2000)])
    assert 4 * expected.expected_s(1000) + 0.5 > 1.5


@given(st.lists(st.tuples(FRESH, SECONDS, st.booleans()), min_size=1), FRESH)
def test_it_stays_between_the_least_and_the_most_that_was_seen_for_a_size(
    samples: list[tuple[int, float, bool]], asked: int
) -> None:
    expected = FirstTokens()
    for fresh, first_s, is_calm in samples:
        expected.learn(fresh, first_s, 4 * expected.expected_s(fresh) + 0.5, is_calm=is_calm)
    of_size = [first_s for fresh, first_s, _ in samples if fresh.bit_length() == asked.bit_length()]
    found = expected.expected_s(asked)
    assert found > 0
    if of_size:
        assert 0.999 * min(of_size) <= found <= 1.001 * max(of_size)
    assert expected.expected_s(-1) == expected.expected_s(0), "an engine may count more cached than there were"
