"""What is kept for the other keys, counted as it changes: the same as counted anew, whatever happens."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.limits import DOOR
from modelyard.gateway.shares import Shares

SEATS = 16
KEYS = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), KEYS, st.sampled_from([1.0, 1.0, 2.0])),
        st.tuples(st.just("give"), KEYS, st.just(0.0)),
        st.tuples(st.just("tidy"), st.just(""), st.sampled_from([0.5, 11.0, 31.0])),
    ),
    max_size=60,
)


@given(STEPS)
def test_what_is_kept_is_what_each_key_wants_without_what_it_holds_after_any_taking_and_giving(
    steps: list[tuple[str, str, float]],
) -> None:
    shares, held, now = Shares(), Counter[str](), 0.0
    wanted = dict[str, int]()

    def missing(key: str) -> int:
        return shares.kept_from("nobody") - shares.kept_from(key)

    for what, key, number in steps:
        if what == "take":
            shares.asked(key, number, now)
            wanted.setdefault(key, held[key] + missing(key))
            shares.took(key)
            held[key] += 1
        elif what == "give" and held[key]:
            shares.gave(key)
            held[key] -= 1
        elif what == "tidy":
            now += number
            shares.tidy(now, SEATS)
            # Told only of a key that misses some; of another that it wants no more than it holds.
            wanted = {one: held[one] + missing(one) for one in held if missing(one)}
        for one, count in wanted.items():
            assert missing(one) == max(0, count - held[one])
        assert shares.kept_from("nobody") == sum(missing(one) for one in "abcd")
    for key, count in held.items():
        for _ in range(count):
            shares.gave(key)
    shares.tidy(now + DOOR.active_s + 1, SEATS)
    assert (len(shares), shares.kept_from("a"), shares.weights) == (0, 0, 0)


def test_a_key_wants_what_it_lately_held_and_one_more_up_to_its_share() -> None:
    shares = Shares()
    for key in "ab":
        shares.asked(key, 1.0, 0.0)
    for most, kept in ((0, 1), (3, 4), (7, 8), (12, 8)):
        for _ in range(most):
            shares.took("b")
        for _ in range(most):
            shares.gave("b")
        shares.tidy(0.5, SEATS)
        assert shares.kept_from("a") == kept
    shares.took("b")
    assert shares.kept_from("a") == 7, "what it holds need not be kept"


def test_what_a_key_held_is_forgotten_after_the_second_turn() -> None:
    shares = Shares()
    for _ in range(5):
        shares.asked("b", 1.0, 0.0)
        shares.took("b")
    for _ in range(5):
        shares.gave("b")
    kept: list[int] = []
    for turn in range(1, 5):
        shares.asked("a", 1.0, turn * DOOR.lately_s)
        shares.asked("b", 1.0, turn * DOOR.lately_s)
        shares.tidy(turn * DOOR.lately_s, SEATS)
        kept.append(shares.kept_from("a"))
    assert kept == [6, 1, 1, 1]


def test_a_heavier_key_may_have_more_kept_for_it() -> None:
    shares = Shares()
    shares.asked("a", 1.0, 0.0)
    shares.asked("b", 3.0, 0.0)
    for _ in range(SEATS):
        shares.took("b")
    for _ in range(SEATS):
        shares.gave("b")
    shares.tidy(0.5, SEATS)
    assert shares.kept_from("a") == 12
