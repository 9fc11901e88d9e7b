"""Recorded choices decided again: the same where nothing changed, told apart where something did."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from journal_records import answered, choice
from modelyard.gateway.balance import choose
from modelyard.gateway.entry import admit
from modelyard.observe.replay import WhatIf, replay, sampled
from modelyard.records.base import decode, encode
from modelyard.records.decision import Candidate, Entry
from modelyard.records.journal import RequestRecord

candidates = st.lists(
    st.builds(
        Candidate, replica=st.sampled_from("abcdef"), in_flight=st.integers(0, 9), max_in_flight=st.integers(1, 9)
    ),
    max_size=6,
    unique_by=lambda one: one.replica,
).map(tuple)


@given(candidates, st.integers(0, 1000))
def test_every_choice_comes_out_again_after_its_way_through_the_journal(
    seen: tuple[Candidate, ...], tie_break: int
) -> None:
    record = decode(encode(answered(decision=choose(seen, tie_break))), RequestRecord)
    found = replay([record])
    assert (found.decisions, found.same, found.differ) == (1, 1, 0)


def test_a_choice_that_comes_out_another_way_is_shown_with_both() -> None:
    wrong = replace(choice(3, 1), replica="small-0")
    found = replay([answered(1), answered(2, decision=wrong), answered(3, decision=None)])
    assert (found.decisions, found.same, found.differ) == (2, 1, 1)
    (one,) = found.differing
    assert (one.request_id, one.recorded.replica, one.now.replica) == (answered(2).request_id, "small-0", "small-1")


def test_what_if_the_caps_had_been_others() -> None:
    records = [answered(decision=choice(1, 0, took="small-1")), answered(decision=choice(2, 2))]
    found = replay(records, WhatIf(cap=2))
    assert (found.same, found.differ, found.unseated) == (1, 1, 1)


def test_what_if_a_replica_had_not_been_there() -> None:
    found = replay([answered(decision=choice(0, 1))], WhatIf(without=frozenset({"small-0"})))
    assert found.differing[0].now.replica == "small-1"


@given(st.integers(0, 60), st.integers(1, 20))
def test_a_sample_is_as_large_as_asked_in_order_and_repeats_itself(there: int, wanted: int) -> None:
    records = [answered(number + 1) for number in range(there)]
    chosen = list(sampled(records, wanted))
    assert len(chosen) == min(there, wanted)
    assert [one.sequence for one in chosen] == sorted({one.sequence for one in chosen})
    assert chosen == list(sampled(records, wanted))


def door(waiting: int, *, room: Literal["free", "taken", "none"] = "free", held_s: float = 1.0) -> Entry:
    return Entry(
        waiting=waiting,
        ahead=waiting,
        held=0,
        keys_waiting=2,
        seats=2,
        held_s=held_s,
        standing_s=0.0,
        room=room,
        queue_timeout_s=30.0,
        overload_wait_s=5.0,
        retry_after_s=2,
        jitter=0.25,
    )


@given(st.integers(0, 200), st.sampled_from(["free", "taken", "none"]), st.floats(0, 100))
def test_every_verdict_of_the_door_comes_out_again_after_its_way_through_the_journal(
    waiting: int, room: Literal["free", "taken", "none"], held_s: float
) -> None:
    record = answered(decision=None, admitted=admit(door(waiting, room=room, held_s=held_s)))
    found = replay([decode(encode(record), RequestRecord)])
    assert (found.entries, found.entries_differ) == (1, 0)


def test_a_verdict_that_comes_out_another_way_is_shown_with_both() -> None:
    wrong = replace(admit(door(0)), verdict="refuse")
    found = replay([answered(admitted=wrong)])
    (one,) = found.differing_entries
    assert (found.entries_differ, one.recorded.verdict, one.now.verdict) == (1, "refuse", "wait")
