"""How many requests a launch is given at once, step by step."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from gateway_fakes import deployment
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.admission import Admission, Asking, Queued, Result, Seats
from modelyard.gateway.balance import replay
from modelyard.gateway.concurrency import EVIDENCE, LEAST_GRADIENT, PATIENCE_S, Concurrency, stepped
from modelyard.gateway.refusals import Refusal
from modelyard.records.decision import Decision
from modelyard.records.topology import Replica

LEVELS = st.floats(1, 4096)
STRAINS = st.floats(0, 1e6)


# One step.


@given(LEVELS, st.integers(0, 5000), STRAINS, LEVELS, st.integers(1, 4096))
def test_a_step_stays_between_floor_and_cap(level: float, used: int, strain: float, late_at: float, cap: int) -> None:
    floor = max(1, cap // 8)
    level = min(cap, max(floor, level))
    found = stepped(level, used, strain, late_at, floor, cap)
    assert floor <= found <= cap
    assert found >= min(level, LEAST_GRADIENT * min(level, max(used, floor))), "one step takes no more than its part"


@given(LEVELS, st.integers(0, 5000), STRAINS, STRAINS, LEVELS)
def test_more_strain_never_leads_to_a_higher_limit(
    level: float, used: int, one: float, other: float, late_at: float
) -> None:
    easy, hard = sorted((one, other))
    assert stepped(level, used, hard, late_at, 1, 4096) <= stepped(level, used, easy, late_at, 1, 4096)


@given(LEVELS, STRAINS, LEVELS)
def test_a_limit_that_is_not_in_use_does_not_fall(level: float, strain: float, late_at: float) -> None:
    used = int(level / 2) - 1
    assert stepped(level, used, strain, late_at, 1, 4096) >= level


def test_it_rises_by_its_root_and_by_less_on_the_way_to_what_was_too_much() -> None:
    assert stepped(16, 16, 0.1, 0, 1, 64) == 20
    assert stepped(16, 16, 0.1, 64, 1, 64) == 20
    assert stepped(16, 16, 0.1, 20, 1, 64) == 17
    assert stepped(24, 16, 0.1, 20, 1, 64) > 28, "beyond it, it was wrong to be careful"


# A launch.


class Launch:
    """A concurrency that is told of requests; time is what the test says."""

    def __init__(self, cap: int = 32) -> None:
        self.concurrency = Concurrency(cap, 4.0)
        self.now = 1000.0
        for _ in range(4):
            self.ends(1, first_s=0.1)
        self.look(0)

    def ends(self, in_flight: int, *, first_s: float, held_s: float = 1.0, fresh: int = 100) -> None:
        self.concurrency.left(in_flight, Result("answered", first_s, 2 * fresh, held_s, fresh), self.now)

    def look(self, in_flight: int, after_s: float = 0.5) -> int:
        self.now += after_s
        return self.concurrency.look(in_flight, self.now)

    def wait(self, waited_s: float, requests: int = EVIDENCE) -> None:
        for _ in range(requests):
            self.concurrency.waits(waited_s, 100, self.now)


def test_it_is_the_cap_until_first_tokens_come_late() -> None:
    launch = Launch()
    for _ in range(20):
        for _ in range(EVIDENCE):
            launch.ends(32, first_s=0.8)
        assert launch.look(32) == 32


def test_late_first_tokens_lower_it() -> None:
    launch = Launch()
    for _ in range(EVIDENCE):
        launch.ends(32, first_s=1.8)
    assert launch.look(32) == int(32 * LEAST_GRADIENT)


def test_a_little_late_lowers_it_a_little() -> None:
    launch = Launch()
    for _ in range(EVIDENCE):
        launch.ends(32, first_s=1.0)
    assert launch.look(32) == 28


def test_few_requests_are_no_evidence() -> None:
    launch = Launch()
    for _ in range(EVIDENCE - 1):
        launch.ends(32, first_s=30.0)
    assert launch.look(32) == 32


def test_one_that_hung_among_others_is_none_either() -> None:
    launch = Launch()
    launch.ends(32, first_s=600.0)
    for _ in range(EVIDENCE):
        launch.ends(32, first_s=0.2)
    assert launch.look(32) == 32


def test_a_crowd_counts_once() -> None:
    launch = Launch()
    for _ in range(EVIDENCE):
        launch.ends(32, first_s=3.0, held_s=5.0)
    fallen = launch.look(32)
    for _ in range(EVIDENCE):
        launch.ends(32, first_s=3.0, held_s=5.0)
    assert fallen < 32
    assert launch.look(31) == fallen, "they were all seated before the limit fell"


def test_those_that_still_wait_for_their_first_token_count_while_they_do() -> None:
    launch = Launch()
    launch.wait(0.8)
    assert launch.look(32) == 32, "that is no longer than it may take"
    launch.wait(3.0)
    fallen = launch.look(32)
    assert fallen < 32
    launch.wait(3.5)
    assert launch.look(32) == fallen, "the same requests"
    launch.look(fallen)
    launch.wait(5.0)
    assert launch.look(fallen) < fallen, "but once no more than that are in flight it was not enough"


def test_it_does_not_rise_while_somebody_waits_too_long() -> None:
    launch = Launch()
    launch.wait(3.0)
    fallen = launch.look(32)
    for _ in range(8):
        launch.wait(20.0, requests=1)
        assert launch.look(20) == fallen
    limits = [launch.look(20) for _ in range(60)]
    assert limits == sorted(limits)
    assert limits[-1] == 32


def test_it_does_not_rise_before_it_was_reached_nor_while_a_cached_prompt_may_wait_too_long() -> None:
    launch = Launch()
    launch.wait(3.0)
    fallen = launch.look(32)
    assert [launch.look(30) for _ in range(20)] == [fallen] * 20
    for _ in range(20):
        launch.concurrency.waits(2.0, 4000, launch.now)
        assert launch.look(fallen) == fallen, "if all of it were fresh it might take as long"
    launch.look(fallen, after_s=PATIENCE_S)
    assert launch.look(fallen) > fallen


def test_answers_without_a_first_token_or_a_count_say_nothing() -> None:
    launch = Launch()
    for _ in range(50):
        launch.ends(32, first_s=0.0, held_s=300.0)
        launch.concurrency.left(32, Result("answered", 30.0, 0, 60.0), launch.now)
        launch.concurrency.left(32, Result("failed"), launch.now)
    assert launch.look(32) == 32


def test_a_slower_engine_is_noticed_where_there_is_no_crowd() -> None:
    launch = Launch()
    for _ in range(200):
        launch.now += 10
        launch.ends(2, first_s=3.0)
        launch.look(2)
    for _ in range(EVIDENCE):
        launch.ends(32, first_s=3.0)
    assert launch.look(32) == 32


def test_the_last_ones_of_a_crowd_do_not_teach_that_it_is_slow() -> None:
    launch = Launch()
    for in_flight in range(32, 0, -1):
        launch.ends(in_flight, first_s=20.0, held_s=40.0)
    assert launch.concurrency.expected.expected_s(100) == pytest.approx(0.1)


def test_a_new_cap_is_taken_in() -> None:
    concurrency = Concurrency(32, 4.0)
    concurrency.bound(64, 4.0)
    assert concurrency.limit == 64
    concurrency.bound(8, 4.0)
    assert (concurrency.limit, concurrency.floor) == (8, 1)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("end"), st.integers(1, 80), st.floats(0, 100), st.integers(0, 5000)),
        st.tuples(st.just("wait"), st.just(0), st.floats(0, 100), st.integers(0, 5000)),
        st.tuples(st.just("look"), st.integers(0, 80), st.floats(0, 70), st.just(0)),
        st.tuples(st.just("cap"), st.integers(1, 64), st.just(0.0), st.just(0)),
    ),
    max_size=120,
)


@given(STEPS)
def test_whatever_happens_it_stays_between_floor_and_cap_and_returns_when_it_is_calm(
    steps: list[tuple[str, int, float, int]],
) -> None:
    cap = 32
    launch = Launch(cap)
    concurrency = launch.concurrency
    for kind, number, seconds, fresh in steps:
        if kind == "end":
            launch.ends(number, first_s=seconds, held_s=seconds, fresh=fresh)
        elif kind == "wait":
            concurrency.waits(seconds, fresh, launch.now)
        elif kind == "look":
            launch.look(number, after_s=seconds)
        else:
            cap = number
            concurrency.bound(cap, 4.0)
        assert max(1, cap // 8) <= concurrency.limit <= cap
    launch.look(0, after_s=70.0)
    for _ in range(2 * cap):
        launch.look(0, after_s=PATIENCE_S)
    assert concurrency.limit == cap


# At the door.


class Asker:
    def __init__(self) -> None:
        self.seats: Seats | None = None
        self.decision: Decision | None = None
        self.refusal: Refusal | None = None

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.seats, self.decision = seats, decision

    def not_seated(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Door:
    def __init__(self, cap: int = 16, **policy: Any) -> None:
        self.now = 100.0
        self.shape = deployment(
            replicas=(Replica(name="a", launch="1", address="unix:/a", max_in_flight=cap),),
            **{"reserved_seats": 0.0, "max_queued": 99, **policy},
        )
        self.admission = Admission(self.shape, clock=lambda: self.now)
        self.admission.update(self.shape)
        self.asked: list[Asker] = []

    @property
    def seats(self) -> Seats:
        return self.admission.seats["a"]

    def ask(self) -> tuple[Asker, Queued | None]:
        asker = Asker()
        self.asked.append(asker)
        return asker, self.admission.enter(asker, Asking("k"), self.now)

    def leave(self, first_s: float) -> None:
        self.admission.leave(self.seats, Result("answered", first_s, 200, first_s + 0.1, 100), Asking("k"))

    def sweep(self) -> int:
        self.now += 0.5
        self.admission.expire(self.now)
        return self.seats.limit

    def strain(self) -> int:
        """One quick answer, then a full house of late ones."""
        self.ask()
        self.leave(0.1)
        self.sweep()
        for _ in range(16):
            self.ask()
        self.now += 9
        for _ in range(8):
            self.leave(5.0)
        return self.sweep()


def test_the_chooser_sees_the_present_limit_and_its_decision_replays() -> None:
    door = Door()
    limit = door.strain()
    assert limit < 16
    waiting: Queued | None = None
    while waiting is None:
        asker, waiting = door.ask()
    assert door.seats.in_flight == limit
    assert asker.seats is None
    seated = door.asked[-2].decision
    assert seated is not None
    assert [(one.in_flight, one.max_in_flight) for one in seated.candidates] == [(limit - 1, limit)]
    assert replay(seated)
    assert waiting.admitted is not None
    assert waiting.admitted.entry.seats == limit


def test_who_waits_is_seated_when_the_limit_rises() -> None:
    door = Door()
    limit = door.strain()
    while door.seats.in_flight < limit:
        door.ask()
    asker, ticket = door.ask()
    assert ticket is not None
    assert asker.seats is None
    for _ in range(6):
        door.sweep()
    assert door.seats.limit > limit
    assert asker.seats is door.seats


def test_a_full_house_above_a_fallen_limit_empties_before_it_takes_anybody() -> None:
    door = Door()
    limit = door.strain()
    door.seats.in_flight = 16
    asker, ticket = door.ask()
    assert ticket is not None
    while door.seats.in_flight > limit:
        assert asker.seats is None
        door.leave(0.0)
    door.leave(0.0)
    assert asker.seats is door.seats


def test_switched_off_nothing_is_learned_and_the_cap_holds() -> None:
    door = Door(adaptive_seats=False)
    assert door.strain() == 16
    assert door.seats.concurrency is None


def test_it_is_switched_on_and_off_with_the_topology() -> None:
    door = Door()
    limit = door.strain()
    policy = door.shape.policy
    off = msgspec.structs.replace(door.shape, policy=msgspec.structs.replace(policy, adaptive_seats=False))
    door.admission.update(door.shape)
    assert door.seats.limit == limit, "a new topology forgets nothing"
    door.admission.update(off)
    assert door.seats.limit == 16
    door.admission.update(door.shape)
    assert door.seats.limit == 16


def test_a_new_launch_begins_with_all_its_seats() -> None:
    door = Door()
    door.strain()
    (replica,) = door.shape.replicas
    fresh = msgspec.structs.replace(replica, launch="2")
    door.admission.update(msgspec.structs.replace(door.shape, replicas=(fresh,)))
    assert door.seats.limit == 16
