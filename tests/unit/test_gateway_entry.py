"""Who may wait: refused early rather than late, with a time to come back, by a decision that can be replayed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from gateway_fakes import deployment
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.admission import RECORD_EVERY, Admission, Asking, Queued, Result, Seats
from modelyard.gateway.entry import admit, replay, retry_after_s
from modelyard.gateway.limits import DOOR
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.standing import Mean, Standing
from modelyard.records.base import decode, encode
from modelyard.records.decision import Admitted, Decision, Entry
from modelyard.records.topology import Replica

QUIET = Entry(
    waiting=0,
    ahead=0,
    held=0,
    keys_waiting=1,
    seats=4,
    held_s=1.0,
    standing_s=0.0,
    room="free",
    queue_timeout_s=30.0,
    overload_wait_s=2.0,
    retry_after_s=2,
    jitter=0.0,
)


def entry(**changes: Any) -> Entry:
    return msgspec.structs.replace(QUIET, **changes)


@pytest.mark.parametrize(
    ("changes", "verdict", "status", "wait_s"),
    [
        ({}, "wait", 0, 0),
        ({"waiting": 100, "ahead": 100}, "wait", 0, 0),
        ({"waiting": 200, "ahead": 200}, "refuse", 503, 51),
        ({"waiting": 9, "ahead": 9, "standing_s": DOOR.standing_s}, "refuse", 503, 3),
        ({"waiting": 7, "ahead": 7, "standing_s": DOOR.standing_s}, "wait", 0, 0),
        # The seats are slow: one that falls free should find somebody.
        ({"waiting": 1, "ahead": 1, "held_s": 60.0, "standing_s": DOOR.standing_s}, "wait", 0, 0),
        ({"waiting": 2, "ahead": 2, "held_s": 60.0, "standing_s": DOOR.standing_s}, "refuse", 503, 45),
        # Nothing is known of the rate.
        ({"waiting": 1000, "ahead": 1000, "held_s": 0.0}, "wait", 0, 0),
        ({"waiting": 64, "room": "none", "held_s": 0.0}, "refuse", 503, 2),
        ({"waiting": 64, "room": "none"}, "refuse", 503, 17),
        ({"waiting": 64, "room": "taken"}, "displace", 0, 0),
        # With another key there, the one that has most of what waits is told that it is the cause.
        ({"waiting": 64, "room": "none", "held": 40, "keys_waiting": 2}, "refuse", 429, 17),
        ({"waiting": 64, "room": "none", "held": 20, "keys_waiting": 2}, "refuse", 503, 17),
    ],
)
def test_the_verdict(changes: dict[str, Any], verdict: str, status: int, wait_s: int) -> None:
    admitted = admit(entry(**changes))
    assert (admitted.verdict, admitted.status, admitted.retry_after_s) == (verdict, status, wait_s)


entries = st.builds(
    Entry,
    waiting=st.integers(0, 10_000),
    ahead=st.integers(0, 10_000),
    held=st.integers(0, 10_000),
    keys_waiting=st.integers(1, 100),
    seats=st.integers(0, 4096),
    held_s=st.floats(0, 3600),
    standing_s=st.floats(0, 3600),
    room=st.sampled_from(["free", "taken", "none"]),
    queue_timeout_s=st.floats(0.01, 86_400),
    overload_wait_s=st.floats(0.01, 86_400),
    retry_after_s=st.integers(1, 60),
    jitter=st.floats(0, 1, exclude_max=True),
)


@given(entries)
def test_every_verdict_replays_from_its_record_and_tells_a_time_to_come_back(one: Entry) -> None:
    admitted = admit(one)
    assert replay(decode(encode(admitted), Admitted))
    assert (admitted.verdict == "refuse") is (admitted.status in (429, 503)) is (admitted.retry_after_s > 0)
    assert admitted.retry_after_s <= DOOR.retry_after_most_s


@given(entries, st.integers(0, 1000))
def test_who_comes_later_is_not_let_in_where_who_came_before_was_not(one: Entry, later: int) -> None:
    behind = msgspec.structs.replace(one, ahead=one.ahead + later)
    assert admit(one).verdict != "refuse" or admit(behind).verdict == "refuse"


def test_a_forged_verdict_does_not_replay() -> None:
    admitted = admit(entry(waiting=64, room="none"))
    assert not replay(Admitted(verdict="wait", reason=admitted.reason, entry=admitted.entry))


def test_the_time_to_come_back_is_the_queue_by_the_rate_spread_over_half_of_it() -> None:
    assert retry_after_s(19, 4, 1.0, 0.0, 2) == 5
    assert retry_after_s(19, 4, 1.0, 0.999, 2) == 8
    assert retry_after_s(0, 4, 0.01, 0.5, 2) == 1
    assert retry_after_s(10_000, 1, 100.0, 0.5, 2) == DOOR.retry_after_most_s
    assert retry_after_s(10_000, 1, 0.0, 0.5, 2) == 2, "the rate is unknown"
    assert retry_after_s(10_000, 0, 1.0, 0.5, 2) == 2, "there are no seats"


def test_a_mean_follows_what_changes() -> None:
    mean = Mean()
    mean.add(1.0)
    mean.add(3.0)
    assert mean.value == 2.0
    for _ in range(200):
        mean.add(10.0)
    assert 9.9 < mean.value < 10.0


def test_an_overload_that_lets_the_queue_run_dry_for_a_moment_is_the_same_overload() -> None:
    standing = Standing()
    standing.look(True, 100.0)
    standing.look(False, 101.0)
    assert standing.lasted_s(101.0) == 0.0, "it was a burst"
    standing.look(True, 102.0)
    standing.look(True, 108.0)
    standing.look(False, 109.0)
    assert standing.lasted_s(109.0) == 7.0
    standing.look(True, 110.0)
    assert standing.lasted_s(110.0) == 8.0
    standing.look(False, 110.0 + DOOR.standing_s)
    assert standing.lasted_s(120.0) == 0.0


# At the door.


class Asker:
    def __init__(self, key: str = "", priority: int = 0) -> None:
        self.asking = Asking(key, priority, size_bytes=100)
        self.seats: Seats | None = None
        self.refusal: Refusal | None = None
        self.ticket: Queued | None = None

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.seats = seats

    def not_seated(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Door:
    """An admission with one replica, and everybody who has come."""

    def __init__(self, seats: int = 4, **changes: Any) -> None:
        changes.setdefault("reserved_seats", 0.0)
        self.replica = Replica(name="a", launch="1", address="unix:/a", max_in_flight=seats)
        shape = deployment(replicas=(self.replica,), **changes)
        self.admission = Admission(shape, jitter=lambda: 0.0)
        self.admission.update(shape)
        self.now = 1000.0

    def come(self, key: str = "", priority: int = 0) -> Asker:
        asker = Asker(key, priority)
        try:
            asker.ticket = self.admission.enter(asker, asker.asking, self.now)
        except Refusal as refusal:
            asker.refusal = refusal
        return asker

    def go(self, asker: Asker, held_s: float = 1.0) -> None:
        assert asker.seats is not None
        self.admission.leave(asker.seats, Result("answered", held_s=held_s, tokens=1), asker.asking)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.admission.expire(self.now)


def test_who_cannot_be_served_in_time_is_told_at_once_and_when_to_come_back() -> None:
    door = Door(seats=1, queue_timeout_s=10.0)
    first = door.come()
    door.go(first, held_s=4.0)
    askers = [door.come() for _ in range(4)]
    assert [one.refusal for one in askers[:3]] == [None] * 3
    late = askers[3].refusal
    assert late is not None
    assert (late.status, late.code, late.retry_after_s) == (503, "overloaded", 12)
    assert "about 12 s" in late.message


def test_in_an_overload_that_lasts_the_queue_is_kept_short() -> None:
    door = Door(seats=4, queue_timeout_s=30.0, overload_wait_s=2.0)
    seated = [door.come() for _ in range(4)]
    door.go(seated.pop(0))
    door.come()
    waiting = [door.come() for _ in range(60)]
    assert all(one.refusal is None for one in waiting), "a burst may fill the queue"
    door.pass_time(DOOR.standing_s)
    assert door.come().refusal is not None
    for one in waiting[:-6]:
        assert one.ticket is not None
        door.admission.forget(one.ticket)
    assert door.come().refusal is None


def test_the_key_with_the_most_is_sent_away_for_the_one_with_less() -> None:
    door = Door(seats=1, max_queued=3)
    door.come("a")
    waiting = [door.come("a") for _ in range(3)]
    assert door.come("b").refusal is None
    assert waiting[2].refusal is not None
    assert (waiting[2].refusal.status, waiting[2].refusal.code) == (429, "over_share")
    again = door.come("a").refusal
    assert again is not None and again.status == 429
    assert [one.refusal for one in waiting[:2]] == [None, None]


def test_a_large_body_counts_against_what_may_wait() -> None:
    door = Door(seats=1, max_queued_bytes=250)
    door.come()
    assert [door.come().refusal is None for _ in range(3)] == [True, True, False]


def test_a_higher_priority_is_seated_first() -> None:
    door = Door(seats=1)
    first, low, high = door.come("a"), door.come("a"), door.come("b", priority=1)
    door.go(first)
    assert high.seats is not None and low.seats is None


def test_what_came_first_within_a_key_goes_first() -> None:
    door = Door(seats=1)
    askers = [door.come("a") for _ in range(5)]
    for index, one in enumerate(askers[:-1]):
        assert [other.seats is not None for other in askers].count(True) == index + 1
        door.go(one)
    assert askers[-1].seats is not None


def test_seats_are_kept_for_a_key_below_its_share_as_many_as_it_lately_held_and_one_more() -> None:
    door = Door(seats=8, reserved_seats=0.5)
    alone = [door.come("a") for _ in range(9)]
    assert [one.seats is not None for one in alone] == [True] * 8 + [False], "alone it may have them all"
    b = door.come("b")
    assert b.seats is None
    door.go(alone[0])
    assert b.seats is not None, "whoever is below its share goes first"
    door.pass_time(0.5)
    door.go(alone[1])
    assert alone[8].seats is None, "it held one: one more is kept for it"
    assert door.come("b").seats is not None
    door.pass_time(0.5)
    door.go(alone[2])
    assert alone[8].seats is None, "now it held two"
    door.go(alone[3])
    assert alone[8].seats is not None


def test_what_a_key_did_not_use_lately_is_lent() -> None:
    door = Door(seats=8, reserved_seats=0.5)
    for one in [door.come("b") for _ in range(4)]:
        door.go(one)
    for _ in range(8):
        door.go(door.come("b"))
        door.pass_time(DOOR.lately_s / 4)
    askers = [door.come("a") for _ in range(8)]
    assert [one.seats is not None for one in askers].count(True) == 6


def test_no_more_than_the_policys_part_is_kept_however_many_keys_are_active() -> None:
    door = Door(seats=8, reserved_seats=0.25)
    for number in range(10):
        door.go(door.come(f"b-{number}"))
    askers = [door.come("a") for _ in range(8)]
    assert [one.seats is not None for one in askers].count(True) == 6


def test_who_may_not_have_the_seats_that_are_kept_is_not_told_that_they_serve_it() -> None:
    """The wait of a key with more than its share is that for the seats which it may have."""
    waits: list[float] = []
    for part in (0.0, 0.5):
        door = Door(seats=8, reserved_seats=part)
        for one in [door.come("b") for _ in range(4)]:
            door.go(one)
        door.pass_time(0.5)
        last = [door.come("a") for _ in range(12)][-1]
        assert last.ticket is not None and last.ticket.admitted is not None
        waits.append(last.ticket.admitted.expected_s)
    assert waits == [pytest.approx(4 / 8), pytest.approx(8 / 4)]


def test_a_key_that_has_not_asked_for_long_keeps_no_seat_free() -> None:
    door = Door(seats=8, reserved_seats=0.125)
    b = door.come("b")
    door.go(b)
    askers = [door.come("a") for _ in range(8)]
    assert askers[7].seats is None
    door.pass_time(11)
    assert askers[7].seats is not None


def test_who_sits_down_when_others_may_not_does_not_lose_the_others() -> None:
    door = Door(seats=8, reserved_seats=0.125)
    door.go(door.come("b"))
    askers = [door.come("a") for _ in range(10)]
    assert door.come("b").seats is not None
    assert door.admission.queue.waiting == 3
    for one in askers[:7]:
        door.go(one)
    assert all(one.seats is not None for one in askers)


def test_whoever_is_told_to_go_may_ask_again_at_once() -> None:
    """A client's next request waits behind the one that is refused: it comes while the door is still busy."""
    door = Door(seats=1, max_queued=2)
    door.come("a")
    door.come("a")

    class Again(Asker):
        def not_seated(self, refusal: Refusal) -> None:
            self.refusal = refusal
            self.next = door.come("a")

    again = Again("a")
    again.ticket = door.admission.enter(again, again.asking, door.now)
    b = door.come("b")
    assert b.refusal is None and again.refusal is not None
    assert again.next.refusal is not None
    assert door.admission.queue.waiting == 2


def test_a_closed_route_turns_all_away_once() -> None:
    door = Door(seats=1)
    askers = [door.come(key) for key in "aabc"]
    door.admission.update(deployment(open=False, reason="red"))
    assert [one.refusal is not None for one in askers] == [False, True, True, True]
    assert door.admission.queue.waiting == 0


def test_decisions_about_waiting_are_kept_sampled_and_replay() -> None:
    door = Door(seats=1, max_queued=2)
    for number in range(50 * RECORD_EVERY):
        door.come(f"key-{number % 5}")
    kept = list(door.admission.recorded)
    assert 10 < len(kept) <= door.admission.recorded.maxlen  # type: ignore[operator]
    assert all(replay(one) for one in kept)
