"""Who goes next: fair between keys, strict but not starving between priorities, in order within a key, and bounded."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from modelyard.gateway.asking import Asking
from modelyard.gateway.fair_queue import FairQueue
from modelyard.gateway.limits import DOOR
from modelyard.gateway.ranking import Ranking


@dataclass(eq=False)
class Ticket:
    asking: Asking
    number: int = 0
    waiting: bool = False


def anyone(ticket: Ticket) -> bool:
    return True


def queue(most: int = 1000, most_bytes: int = 1_000_000) -> FairQueue[Ticket]:
    return FairQueue(most, most_bytes)


def put(
    into: FairQueue[Ticket], key: str, *, number: int = 0, tokens: int = 1, priority: int = 0, weight: float = 1.0
) -> Ticket:
    ticket = Ticket(Asking(key, priority, tokens, weight=weight, size_bytes=10), number)
    into.put(ticket)
    return ticket


def take(out_of: FairQueue[Ticket]) -> Ticket:
    ticket = out_of.next(anyone)
    assert ticket is not None
    out_of.take(ticket)
    return ticket


def order(out_of: FairQueue[Ticket]) -> str:
    return "".join(take(out_of).asking.key_id for _ in range(len(out_of)))


def test_keys_take_turns_however_many_each_has_waiting() -> None:
    waiting = queue()
    for _ in range(6):
        put(waiting, "a")
    for _ in range(3):
        put(waiting, "b")
    assert order(waiting) == "abababaaa"


def test_turns_are_counted_in_tokens_not_in_requests() -> None:
    waiting = queue()
    for _ in range(2):
        put(waiting, "a", tokens=300)
    for _ in range(6):
        put(waiting, "b", tokens=100)
    assert order(waiting) == "abbbabbb"


def test_a_key_of_twice_the_weight_gets_twice_as_much() -> None:
    waiting = queue()
    for _ in range(40):
        put(waiting, "a", weight=2.0)
        put(waiting, "b")
    first = [take(waiting).asking.key_id for _ in range(30)]
    assert abs(first.count("a") - 2 * first.count("b")) <= 2


def test_who_was_away_comes_back_without_credit() -> None:
    waiting = queue()
    put(waiting, "b")
    take(waiting)
    for _ in range(100):
        put(waiting, "a")
        take(waiting)
    for _ in range(4):
        put(waiting, "a")
        put(waiting, "b")
    assert sorted(take(waiting).asking.key_id for _ in range(4)) == ["a", "a", "b", "b"]


def test_what_was_given_without_waiting_counts_too() -> None:
    waiting = queue()
    waiting.charge(Asking("a", tokens=100))
    put(waiting, "a")
    put(waiting, "b")
    assert order(waiting) == "ba"


def test_what_a_request_did_not_use_is_given_back() -> None:
    waiting = queue()
    asked = Asking("a", tokens=1000)
    waiting.charge(asked)
    put(waiting, "b", tokens=10)
    put(waiting, "b", tokens=10)
    put(waiting, "a", tokens=10)
    waiting.settle(asked, 5)
    assert order(waiting) == "bab"


def test_a_higher_priority_goes_first_and_lower_ones_are_not_starved() -> None:
    waiting = queue()
    for _ in range(DOOR.passes * 3):
        put(waiting, "high", priority=1)
    for _ in range(3):
        put(waiting, "low", priority=-1)
    took = [take(waiting).asking.priority for _ in range(len(waiting))]
    assert took == ([1] * DOOR.passes + [-1]) * 3


def test_who_may_not_go_lets_others_pass_and_keeps_its_place() -> None:
    waiting = queue()
    put(waiting, "a", number=1)
    put(waiting, "b", number=2)
    only_b = waiting.next(lambda one: one.asking.key_id == "b")
    assert only_b is not None and only_b.number == 2
    assert waiting.next(lambda one: False) is None
    assert take(waiting).number == 1


def test_who_may_go_to_fewer_replicas_does_not_hold_up_its_key() -> None:
    waiting = queue()
    waiting.put(Ticket(Asking("a", excluded=frozenset({"r0"})), 1))
    put(waiting, "a", number=2)
    free = waiting.next(lambda one: not one.asking.excluded)
    assert free is not None and free.number == 2
    waiting.take(free)
    assert take(waiting).number == 1


def test_who_had_a_seat_before_goes_before_the_others_of_its_key_in_their_order() -> None:
    waiting = queue()
    for number in range(2):
        put(waiting, "a", number=number)
    for number in (2, 3):
        waiting.put(Ticket(Asking("a", tokens=1, again=True), number))
    put(waiting, "a", number=4)
    assert [take(waiting).number for _ in range(5)] == [2, 3, 0, 1, 4]


def test_having_had_a_seat_does_not_change_whose_turn_it_is() -> None:
    waiting = queue()
    put(waiting, "a", tokens=10)
    take(waiting)
    for _ in range(2):
        put(waiting, "b", tokens=10)
    waiting.put(Ticket(Asking("a", tokens=10, again=True)))
    assert order(waiting) == "bab"
    assert waiting.ahead(Asking("b", again=True)) == 0


def test_who_had_a_seat_before_is_the_last_of_its_key_to_make_room() -> None:
    waiting = queue(most=3)
    tickets = [Ticket(Asking("a", again=number == 0), number) for number in range(3)]
    for ticket in tickets:
        waiting.put(ticket)
    for number in (2, 1):
        assert waiting.make_room(Asking("b")) == [tickets[number]]
        put(waiting, f"b{number}")


def test_a_newcomer_that_had_a_seat_has_none_of_its_key_ahead() -> None:
    waiting = queue()
    for _ in range(5):
        put(waiting, "a")
        put(waiting, "b")
    assert waiting.ahead(Asking("a")) == 10
    assert waiting.ahead(Asking("a", again=True)) == 1


def test_what_is_given_elsewhere_counts_for_the_key() -> None:
    """However many of a key's requests have failed somewhere, it has one turn, not two."""
    waiting = queue()
    for number in range(4):
        put(waiting, "a", tokens=10)
        put(waiting, "b", tokens=10)
        waiting.put(Ticket(Asking("a", 0, 10, frozenset({f"r{number}"}), again=True)))
    first = [take(waiting).asking.key_id for _ in range(8)]
    assert sorted(first) == ["a"] * 4 + ["b"] * 4
    assert waiting.held(Asking("a")) == 4
    assert waiting.keys_waiting(0) == 1


def test_what_failed_is_given_back_to_the_key_although_it_goes_elsewhere_now() -> None:
    waiting = queue()
    failed = Asking("a", tokens=100)
    waiting.charge(failed)
    waiting.settle(failed, 0)
    waiting.put(Ticket(Asking("a", 0, 100, frozenset({"r0"}), again=True)))
    put(waiting, "b", tokens=100)
    put(waiting, "b", tokens=100)
    assert order(waiting) in ("abb", "bab"), "it is not behind what it never got"


def test_the_newest_of_the_key_with_the_most_makes_room() -> None:
    waiting = queue(most=4)
    tickets = [put(waiting, "a", number=number) for number in range(3)]
    put(waiting, "b")
    assert not waiting.fits(Asking("c"))
    assert waiting.make_room(Asking("c")) == [tickets[2]]
    put(waiting, "c")
    assert waiting.make_room(Asking("a")) is None, "its own key has the most"
    assert waiting.make_room(Asking("b")) is None, "then both would have the same"


def test_bytes_are_bounded_like_places() -> None:
    waiting = queue(most=100, most_bytes=100)
    large = Ticket(Asking("a", size_bytes=80))
    waiting.put(large)
    put(waiting, "b")
    assert not waiting.fits(Asking("b", size_bytes=20))
    assert waiting.make_room(Asking("b", size_bytes=20)) == [large]
    assert waiting.fits(Asking("b", size_bytes=20))


def test_what_cannot_be_made_room_for_leaves_everybody_where_they_were() -> None:
    waiting = queue(most=100, most_bytes=100)
    tickets = [Ticket(Asking("a", size_bytes=30), number) for number in range(3)]
    for ticket in tickets:
        waiting.put(ticket)
    assert waiting.make_room(Asking("b", size_bytes=75)) is None
    assert [take(waiting).number for _ in range(3)] == [0, 1, 2]


def test_each_priority_keeps_some_places_against_the_others() -> None:
    waiting = queue(most=16)
    for number in range(14):
        put(waiting, "high", priority=1, number=number)
    for _ in range(2):
        put(waiting, "low")
    assert waiting.make_room(Asking("low")) is None, "no more than it is guaranteed against a higher one"
    assert waiting.make_room(Asking("other", priority=1)) is not None, "within its own priority: the one with the most"
    put(waiting, "other", priority=1)
    lowest = waiting.make_room(Asking("background", priority=-1))
    assert lowest is not None and lowest[0].asking.key_id == "high"


def test_a_higher_priority_pushes_out_a_lower_one_that_has_more_than_is_guaranteed() -> None:
    waiting = queue(most=16)
    tickets = [put(waiting, "low", number=number) for number in range(16)]
    for number in range(14):
        room = waiting.make_room(Asking("high", priority=1))
        assert room == [tickets[15 - number]]
        put(waiting, "high", priority=1)
    assert waiting.make_room(Asking("high", priority=1)) is None


def test_an_empty_queue_makes_no_room() -> None:
    assert queue(most=0).make_room(Asking("a")) is None


# For any load.

keys = st.sampled_from("abcd")
loads = st.lists(st.tuples(keys, st.integers(1, 500), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=80)


@given(st.lists(st.integers(1, 300), min_size=30, max_size=60), st.lists(st.integers(1, 300), min_size=30, max_size=60))
def test_two_keys_that_always_wait_differ_by_one_request_of_each(a: list[int], b: list[int]) -> None:
    waiting = queue()
    for key, costs in (("a", a), ("b", b)):
        for tokens in costs:
            put(waiting, key, tokens=tokens)
    given_to = {"a": 0, "b": 0}
    left = {"a": len(a), "b": len(b)}
    while all(left.values()):
        ticket = take(waiting)
        key = ticket.asking.key_id
        left[key] -= 1
        given_to[key] += ticket.asking.tokens
        if all(left.values()):
            assert abs(given_to["a"] - given_to["b"]) <= max(a) + max(b)


@given(loads)
def test_whoever_waits_is_served_once_and_in_order_within_its_key(load: list[tuple[str, int, float]]) -> None:
    waiting = queue()
    for number, (key, tokens, weight) in enumerate(load):
        put(waiting, key, number=number, tokens=tokens, weight=weight)
    took = [take(waiting) for _ in load]
    assert waiting.next(anyone) is None
    for key in "abcd":
        numbers = [one.number for one in took if one.asking.key_id == key]
        assert numbers == sorted(numbers)
    assert sorted(one.number for one in took) == list(range(len(load)))


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=120))
def test_no_priority_waits_longer_than_its_passes(priorities: list[int]) -> None:
    waiting = queue()
    for number, priority in enumerate(priorities):
        put(waiting, "k", number=number, priority=priority)
    since: dict[int, int] = {}
    while len(waiting):
        present = {one for one in set(priorities) if waiting.keys_waiting(one)}
        took = take(waiting).asking.priority
        for priority in present:
            since[priority] = 0 if priority == took else since.get(priority, 0) + 1
            assert since[priority] <= DOOR.passes + len(set(priorities))


class Model(RuleBasedStateMachine):
    """Any order of operations, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = queue(most=12, most_bytes=400)
        self.present: list[Ticket] = []
        self.count = 0

    @rule(
        key=keys,
        priority=st.integers(0, 1),
        tokens=st.integers(0, 90),
        size=st.integers(0, 90),
        failed=st.sampled_from([frozenset[str](), frozenset({"r0"})]),
        again=st.booleans(),
    )
    def come(self, key: str, priority: int, tokens: int, size: int, failed: frozenset[str], again: bool) -> None:
        asking = Asking(key, priority, tokens, failed, size_bytes=size, again=again)
        room = self.queue.make_room(asking)
        if room is None:
            return
        assert all(not one.waiting for one in room)
        self.present = [one for one in self.present if one not in room]
        self.count += 1
        ticket = Ticket(asking, self.count)
        self.queue.put(ticket)
        self.present.append(ticket)

    @rule()
    def go(self) -> None:
        ticket = self.queue.next(anyone)
        assert (ticket is None) is (not self.present), "whoever waits gets what is free"
        if ticket is not None:
            same = [one for one in self.present if _in_line(one.asking) == _in_line(ticket.asking)]
            assert ticket is min(same, key=lambda one: (not one.asking.again, one.number))
            self.queue.take(ticket)
            self.present.remove(ticket)

    @rule(which=st.integers(0, 50), used=st.integers(0, 200))
    def leave(self, which: int, used: int) -> None:
        if self.present:
            ticket = self.present.pop(which % len(self.present))
            self.queue.drop(ticket)
            self.queue.settle(ticket.asking, used)

    @rule()
    def tidy(self) -> None:
        self.queue.tidy()

    @invariant()
    def counts_are_exact(self) -> None:
        assert len(self.queue) == len(self.present) <= 12
        assert self.queue.size_bytes == sum(one.asking.size_bytes for one in self.present) <= 400
        assert all(one.waiting for one in self.present)
        for one in self.present:
            same = [two for two in self.present if two.asking.key_id == one.asking.key_id]
            assert self.queue.held(one.asking) == sum(two.asking.priority == one.asking.priority for two in same)


def _in_line(asking: Asking) -> tuple[str, int, frozenset[str]]:
    return asking.key_id, asking.priority, asking.excluded


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


@given(st.lists(st.tuples(keys, st.integers(-5, 5) | st.none()), max_size=300))
def test_a_ranking_is_sorted_whatever_changed(changes: list[tuple[str, int | None]]) -> None:
    ranking, known = Ranking(), dict[str, int]()
    for name, value in changes:
        if value is None:
            ranking.remove(name)
            known.pop(name, None)
        else:
            ranking.set(name, value)
            known[name] = value
        least = ranking.least()
        assert (least is None) is (not known)
        assert least is None or known[least] == min(known.values())
        refused = ranking.least(lambda one: one != "a")
        rest = {one: number for one, number in known.items() if one != "a"}
        assert (refused is None) is (not rest)
        assert refused is None or rest[refused] == min(rest.values())
        assert len(ranking) == len(known)


def test_keys_that_are_gone_are_forgotten() -> None:
    waiting = queue()
    for number in range(500):
        waiting.charge(Asking(f"key-{number}", tokens=number))
    waiting.tidy()
    assert waiting.keys_known() == 0
