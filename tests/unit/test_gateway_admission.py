"""Caps, queue and choice: who goes when, and where."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_fakes import deployment
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.admission import WITHDRAWN, Admission, Asking, Queued, Seats
from modelyard.gateway.balance import choose, replay
from modelyard.gateway.refusals import Refusal
from modelyard.records.decision import Candidate, Decision
from modelyard.records.topology import Replica


class Asker:
    """Somebody who waits for a seat; `log` is shared, so that the order of events can be read from it."""

    def __init__(self, name: int, log: list[tuple[int, str]]) -> None:
        self.name, self.log = name, log
        self.seats: Seats | None = None
        self.decision: Decision | None = None

    def seated(self, seats: Seats, decision: Decision) -> None:
        self.seats, self.decision = seats, decision
        self.log.append((self.name, seats.replica.name))

    def not_seated(self, refusal: Refusal) -> None:
        self.log.append((self.name, refusal.message))


def replica(name: str, cap: int = 2, **changes: Any) -> Replica:
    return Replica(**{"name": name, "launch": "1", "address": f"unix:/{name}", "max_in_flight": cap, **changes})


def door(*replicas: Replica, **changes: Any) -> Admission:
    shape = deployment(replicas=replicas, **{"max_queued": 3, "queue_timeout_s": 5.0, **changes})
    admission = Admission(shape)
    admission.update(shape)
    return admission


class Crowd:
    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.log: list[tuple[int, str]] = []
        self.count = 0

    def enter(self, now: float = 0.0) -> tuple[Asker, Queued | None]:
        self.count += 1
        asker = Asker(self.count, self.log)
        return asker, self.admission.enter(asker, Asking(), now)


def test_each_replica_takes_its_cap_and_the_rest_waits_in_order() -> None:
    admission = door(replica("a"), replica("b", cap=1))
    crowd = Crowd(admission)
    askers = [crowd.enter()[0] for _ in range(6)]
    assert crowd.log == [(1, "a"), (2, "b"), (3, "a")]
    for first in askers[:3]:
        assert first.seats is not None
        admission.leave(first.seats, WITHDRAWN, Asking())
    assert crowd.log[3:] == [(4, "a"), (5, "b"), (6, "a")]


def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    admission = door(replica("a", cap=1))
    crowd = Crowd(admission)
    first, _ = crowd.enter()
    crowd.enter()
    crowd.enter()
    assert first.seats is not None
    admission.leave(first.seats, WITHDRAWN, Asking())
    assert [name for name, _ in crowd.log] == [1, 2]


def test_a_full_queue_is_overloaded() -> None:
    crowd = Crowd(door(replica("a", cap=1), retry_after_s=7))
    for _ in range(4):
        crowd.enter()
    with pytest.raises(Refusal) as refused:
        crowd.enter()
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "overloaded", 7)


def test_who_leaves_the_queue_frees_the_place() -> None:
    admission = door(replica("a", cap=1))
    crowd = Crowd(admission)
    first, _ = crowd.enter()
    tickets = [crowd.enter()[1] for _ in range(3)]
    assert tickets[1] is not None
    admission.forget(tickets[1])
    crowd.enter()
    assert len(admission.queue) == 3
    assert first.seats is not None
    for _ in range(3):
        admission.leave(first.seats, WITHDRAWN, Asking())
    assert [name for name, _ in crowd.log] == [1, 2, 4, 5]


def test_a_wait_has_an_end() -> None:
    admission = door(replica("a", cap=1))
    crowd = Crowd(admission)
    crowd.enter(now=0)
    crowd.enter(now=1)
    crowd.enter(now=3)
    admission.expire(5.9)
    assert len(crowd.log) == 1
    admission.expire(6.0)
    assert crowd.log[1:] == [(2, "'m': waited 5 s for a free replica")]


def test_a_closed_route_says_why_and_turns_the_queue_away() -> None:
    admission = door(replica("a", cap=1))
    crowd = Crowd(admission)
    crowd.enter()
    crowd.enter()
    admission.update(deployment(open=False, reason="verification is red", retry_after_s=9))
    assert crowd.log[1:] == [(2, "'m' is not ready: verification is red")]
    with pytest.raises(Refusal, match="verification is red") as refused:
        crowd.enter()
    assert refused.value.retry_after_s == 9


def test_a_draining_replica_gets_nothing_new() -> None:
    admission = door(replica("a", draining=True), replica("b"))
    crowd = Crowd(admission)
    crowd.enter()
    crowd.enter()
    assert crowd.log == [(1, "b"), (2, "b")]


def test_a_new_launch_starts_with_free_seats_and_takes_the_queue() -> None:
    admission = door(replica("a", cap=1))
    crowd = Crowd(admission)
    old, _ = crowd.enter()
    crowd.enter()
    before = admission.seats["a"].pool
    gone = admission.update(deployment(replicas=(replica("a", cap=1, launch="2"),)))
    assert gone == [before]
    assert crowd.log == [(1, "a"), (2, "a")]
    assert old.seats is not None
    admission.leave(old.seats, WITHDRAWN, Asking())  # the seat at the launch that is gone
    assert admission.seats["a"].in_flight == 1


def test_the_same_launch_keeps_its_seats_when_other_things_change() -> None:
    admission = door(replica("a", cap=1))
    crowd = Crowd(admission)
    crowd.enter()
    crowd.enter()
    assert admission.update(deployment(replicas=(replica("a", cap=2),))) == []
    assert crowd.log == [(1, "a"), (2, "a")]
    assert admission.seats["a"].in_flight == 2


# The choice.

candidates = st.lists(
    st.builds(
        lambda name, busy, cap: Candidate(replica=str(name), in_flight=busy, max_in_flight=cap),
        st.integers(0, 9),
        st.integers(0, 6),
        st.integers(1, 5),
    ),
    max_size=6,
).map(tuple)


@given(candidates, st.integers(0, 1000))
def test_the_least_busy_free_replica_is_chosen_and_the_choice_replays(
    among: tuple[Candidate, ...], tie_break: int
) -> None:
    decision = choose(among, tie_break)
    free = [one for one in among if one.in_flight < one.max_in_flight]
    if not free:
        assert decision.replica is None
    else:
        least = min(one.in_flight for one in free)
        assert decision.replica in {one.replica for one in free if one.in_flight == least}
    assert replay(decision)


def test_equals_take_turns() -> None:
    among = tuple(Candidate(replica=name, in_flight=1, max_in_flight=2) for name in "abc")
    assert [choose(among, turn).replica for turn in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_forged_decision_does_not_replay() -> None:
    among = (Candidate(replica="a", in_flight=0, max_in_flight=1), Candidate(replica="b", in_flight=1, max_in_flight=2))
    assert not replay(Decision(replica="b", reason="least in flight", candidates=among))


def test_what_takes_no_connection_gets_nothing_new_until_the_next_look() -> None:
    admission = door(replica("a", cap=4), replica("b", cap=4))
    crowd = Crowd(admission)
    asker, _ = crowd.enter()
    assert asker.seats is not None
    refusing = asker.seats
    refusing.refusing = True
    assert admission.has_other(frozenset()), "there is another one"
    admission.leave(refusing, WITHDRAWN, Asking())
    others = [crowd.enter()[0] for _ in range(3)]
    assert all(one.seats is not None and one.seats is not refusing for one in others)
    assert all(one.decision is not None and replay(one.decision) for one in others)
    admission.expire(0.0)
    assert crowd.enter()[0].seats is refusing


def test_the_last_replica_is_tried_although_it_refused() -> None:
    admission = door(replica("a", cap=4))
    crowd = Crowd(admission)
    asker, _ = crowd.enter()
    assert asker.seats is not None
    asker.seats.refusing = True
    assert not admission.has_other(frozenset()), "there is no other one"
    assert crowd.enter()[0].seats is asker.seats


def test_the_queue_goes_on_once_a_replica_may_be_tried_again() -> None:
    admission = door(replica("a", cap=1), replica("b", cap=1))
    crowd = Crowd(admission)
    first, _ = crowd.enter()
    crowd.enter()
    waiting, ticket = crowd.enter()
    assert ticket is not None and first.seats is not None
    first.seats.refusing = True
    admission.leave(first.seats, WITHDRAWN, Asking())
    assert waiting.seats is None and len(admission.queue) == 1, "the other one is full"
    admission.expire(0.0)
    assert waiting.seats is first.seats
