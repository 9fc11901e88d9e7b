"""Who is suspected of a launch's death, who is convicted, and what clears them: the pure state, and a model of a fleet
in which some requests kill with certainty."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelyard.gateway.poison import (
    CONVICT_S,
    DOUBT_S,
    MOST_ENDS,
    MOST_SUSPECTS,
    SUSPECT_S,
    Launch,
    SentAs,
    Suspects,
    fingerprint,
)

A, B, C = (("r0", "1"), ("r1", "1"), ("r2", "1"))
POISON, OTHER, THIRD = b"poison", b"other", b"third"


def batch_died(launch: Launch = A) -> Suspects:
    """Three requests were in flight at one launch, and it died."""
    suspects = Suspects(2)
    for one in (POISON, OTHER, THIRD):
        suspects.lost(launch, one, 1.0)
    suspects.died(launch, 2.0)
    return suspects


def test_a_fingerprint_tells_requests_apart_and_says_nothing_of_them() -> None:
    told = fingerprint("/v1/completions", b'{"prompt":"secret"}')
    assert len(told) == 16 and b"secret" not in told
    assert told == fingerprint("/v1/completions", b'{"prompt":"secret"}')
    assert told != fingerprint("/v1/completions", b'{"prompt":"secret!"}')
    assert told != fingerprint("/v1/chat/completions", b'{"prompt":"secret"}')


def test_without_a_loss_nobody_is_looked_at() -> None:
    suspects = Suspects(2)
    suspects.died(A, 1.0)
    assert not suspects and suspects.verdict(POISON) == ""


def test_all_that_were_in_flight_at_a_death_are_suspects_and_none_is_convicted() -> None:
    suspects = batch_died()
    assert [suspects.verdict(one) for one in (POISON, OTHER, THIRD)] == ["suspect"] * 3
    assert suspects.refusal(POISON, 2.0) is None


def test_the_isolated_one_of_a_second_death_is_convicted_and_nobody_beside_it() -> None:
    suspects = batch_died()
    suspects.lost(B, POISON, 3.0, sent_as="isolated")
    suspects.lost(B, b"new", 3.0)
    suspects.lost(B, OTHER, 3.0, sent_as="passed")
    assert suspects.verdict(POISON) == "undecided", "it is not sent a third time while nobody knows"
    suspects.died(B, 3.1)
    assert suspects.verdict(POISON) == "convicted"
    assert [suspects.verdict(one) for one in (b"new", OTHER, THIRD)] == ["suspect"] * 3
    refusal = suspects.refusal(POISON, 3.1)
    assert refusal is not None and (refusal.status, refusal.code) == (422, "poison_request")
    assert "ended the engine 2 times and is not sent again for 60 min" in refusal.message


def test_two_that_were_there_together_remain_suspects() -> None:
    suspects = batch_died()
    for one in (POISON, OTHER):
        suspects.lost(B, one, 3.0, sent_as="isolated")
    suspects.died(B, 3.1)
    assert [suspects.verdict(one) for one in (POISON, OTHER)] == ["suspect"] * 2


def test_who_was_sent_like_any_other_is_not_convicted_however_many_died() -> None:
    """The same request in flight at every replica when the machine stumbles."""
    suspects = Suspects(2)
    for launch in (A, B, C):
        suspects.lost(launch, POISON, 1.0)
        suspects.died(launch, 1.0)
    assert suspects.verdict(POISON) == "suspect"


def test_one_that_was_heard_of_late_takes_the_conviction_back() -> None:
    suspects = batch_died()
    suspects.lost(B, POISON, 3.0, sent_as="passed")
    suspects.died(B, 3.1)
    assert suspects.verdict(POISON) == "convicted"
    suspects.lost(B, OTHER, 3.2, sent_as="passed")
    assert [suspects.verdict(one) for one in (POISON, OTHER)] == ["suspect"] * 2


def test_the_order_in_which_deaths_become_known_does_not_matter() -> None:
    suspects = Suspects(2)
    suspects.lost(A, POISON, 1.0)
    suspects.lost(B, POISON, 2.0, sent_as="isolated")
    suspects.died(B, 3.0)
    assert suspects.verdict(POISON) == "undecided"
    suspects.died(A, 4.0)
    assert suspects.verdict(POISON) == "convicted"


def test_a_reset_by_a_launch_that_lives_counts_for_nothing() -> None:
    suspects = Suspects(2)
    suspects.lost(A, POISON, 1.0)
    assert suspects.verdict(POISON) == "suspect" and suspects.doubted() == (A,)
    suspects.lived(A, 0.5)
    assert suspects.verdict(POISON) == "suspect", "what was sent before the loss says nothing"
    suspects.lived(A, 1.5)
    assert not suspects
    suspects.died(A, 2.0)
    assert suspects.verdict(POISON) == ""


def test_a_death_counts_once_also_for_copies_of_one_request() -> None:
    suspects = Suspects(2)
    for _ in range(3):
        suspects.lost(A, POISON, 1.0)
    suspects.died(A, 1.0)
    suspects.died(A, 1.1)
    suspects.lost(A, POISON, 1.2, sent_as="isolated")
    assert suspects.verdict(POISON) == "suspect"


def test_a_launch_that_lost_a_connection_may_be_dead_until_it_is_seen_to_live() -> None:
    suspects = batch_died()
    suspects.lost(B, POISON, 3.0, pieces=4)
    suspects.lost(B, OTHER, 4.0)
    assert suspects.is_dead(A) and not suspects.is_doubted(A)
    assert suspects.is_doubted(B) and not suspects.is_dead(B)
    assert not suspects.is_doubted(C) and not suspects.is_dead(C)
    suspects.lived(B, 3.5)
    assert suspects.is_doubted(B), "it was seen to live before the last loss"
    suspects.lived(B, 4.5)
    assert suspects.is_dead(A) and not suspects.is_doubted(B)
    assert (suspects.pieces(POISON), suspects.pieces(OTHER)) == (4, 0)


def test_an_answer_clears_also_where_older_losses_are_decided_later() -> None:
    suspects = Suspects(2)
    suspects.lost(A, POISON, 1.0)
    suspects.answered(POISON)
    suspects.died(A, 2.0)
    assert suspects.verdict(POISON) == ""
    suspects.lost(B, POISON, 3.0, sent_as="isolated")
    suspects.died(B, 3.0)
    assert suspects.verdict(POISON) == "suspect", "the first death again"


def test_everything_is_forgotten_in_time() -> None:
    suspects = batch_died()
    suspects.lost(B, POISON, 3.0, sent_as="isolated")
    suspects.died(B, 3.0)
    suspects.tidy(3.0 + SUSPECT_S)
    assert (suspects.verdict(POISON), suspects.verdict(OTHER)) == ("convicted", "")
    suspects.tidy(3.0 + CONVICT_S)
    assert not suspects


def test_what_is_never_decided_was_no_death() -> None:
    suspects = Suspects(2)
    suspects.lost(A, POISON, 1.0)
    suspects.tidy(1.0 + DOUBT_S)
    assert suspects.verdict(POISON) == "suspect"
    suspects.tidy(1.1 + DOUBT_S)
    assert not suspects


def test_it_is_bounded_and_convicts_are_kept_longest() -> None:
    suspects = batch_died()
    suspects.lost(B, POISON, 3.0, sent_as="isolated")
    suspects.died(B, 3.0)
    for number in range(2 * MOST_SUSPECTS):
        suspects.lost(("r0", f"{number % 4}"), b"%d" % number, 4.0)
    assert suspects.verdict(POISON) == "convicted" and suspects.verdict(OTHER) == ""
    assert sum(bool(suspects.verdict(b"%d" % number)) for number in range(2 * MOST_SUSPECTS)) == MOST_SUSPECTS - 1


def test_launches_in_doubt_are_bounded_and_the_oldest_counts_as_alive() -> None:
    suspects = Suspects(2)
    for number in range(2 * MOST_ENDS):
        suspects.lost(("r0", f"{number}"), b"%d" % number, 1.0)
    assert len(suspects.doubted()) == MOST_ENDS
    assert (suspects.verdict(b"0"), suspects.verdict(b"%d" % (2 * MOST_ENDS - 1))) == ("", "suspect")


def test_with_a_limit_of_0_nobody_is_suspected() -> None:
    suspects = Suspects(0)
    suspects.lost(A, POISON, 1.0)
    suspects.died(A, 1.0)
    assert not suspects


class Fleet(RuleBasedStateMachine):
    """Launches that a poison ends the moment it is sent there, with everything else that is in flight. The door sends
    as it promises: a suspect only where no other is and that lives, an undecided or convicted one nowhere. Deaths
    become known late, in any order, and some launches only reset connections."""

    @initialize(poisons=st.sets(st.integers(0, 5), max_size=2))
    def begin(self, poisons: set[int]) -> None:
        self.suspects = Suspects(2)
        self.poisons = {b"%d" % one for one in poisons}
        self.at = 0.0
        self.launch: dict[str, int] = dict.fromkeys(("r0", "r1", "r2"), 0)
        self.in_flight: dict[str, dict[bytes, SentAs]] = {name: {} for name in self.launch}
        # Reset by a launch that was not seen to live since: if that dies, it looks as if they had been there.
        self.in_doubt: dict[str, dict[bytes, SentAs]] = {name: {} for name in self.launch}
        self.unknown: list[Launch] = []
        self.killed: Counter[bytes] = Counter()
        self.deaths_of: Counter[bytes] = Counter()
        self.was_alone: set[bytes] = set()

    def _now(self) -> float:
        self.at += 0.001
        return self.at

    @rule(replica=st.sampled_from(("r0", "r1", "r2")), request=st.integers(0, 5).map(lambda one: b"%d" % one))
    def send(self, replica: str, request: bytes) -> None:
        verdict = self.suspects.verdict(request)
        flying = self.in_flight[replica]
        elsewhere = any(request in one for one in self.in_flight.values())
        if verdict in ("undecided", "convicted") or elsewhere:
            return
        is_dubious = self.suspects.is_doubted((replica, str(self.launch[replica])))
        if verdict == "suspect" and ("isolated" in flying.values() or is_dubious):
            return
        flying[request] = "isolated" if verdict else ""
        if request in self.poisons:
            self.killed[request] += 1
            self._end(replica, dies=True)

    @rule(replica=st.sampled_from(("r0", "r1", "r2")), dies=st.booleans())
    def stumble(self, replica: str, dies: bool) -> None:
        """It dies of something else, or resets what it has."""
        self._end(replica, dies=dies)

    def _end(self, replica: str, *, dies: bool) -> None:
        launch = (replica, str(self.launch[replica]))
        flying, self.in_flight[replica] = self.in_flight[replica], {}
        for request, sent_as in flying.items():
            self.suspects.lost(launch, request, self._now(), sent_as=sent_as)
        doubted = self.in_doubt[replica]
        doubted.update({one: sent_as or doubted.get(one, "") for one, sent_as in flying.items()})
        if dies:
            self.deaths_of.update(doubted.keys())
            isolated = [request for request, sent_as in doubted.items() if sent_as]
            if len(isolated) == 1:
                self.was_alone.update(isolated)
            self.in_doubt[replica] = {}
            self.launch[replica] += 1
            self.unknown.append(launch)

    @precondition(lambda self: self.unknown)
    @rule(data=st.data())
    def becomes_known(self, data: st.DataObject) -> None:
        launch = data.draw(st.sampled_from(self.unknown))
        self.unknown.remove(launch)
        self.suspects.died(launch, self._now())

    @rule(replica=st.sampled_from(("r0", "r1", "r2")))
    def is_seen_to_live(self, replica: str) -> None:
        self.suspects.lived((replica, str(self.launch[replica])), self._now())
        self.in_doubt[replica] = {}

    @rule(replica=st.sampled_from(("r0", "r1", "r2")))
    def answers(self, replica: str) -> None:
        for request in self.in_flight[replica]:
            assert request not in self.poisons
            self.suspects.answered(request)
            self.deaths_of[request] = 0
            for doubted in self.in_doubt.values():
                doubted.pop(request, None)
        self.in_flight[replica] = {}

    @invariant()
    def a_poison_kills_twice_at_most(self) -> None:
        assert all(count <= 2 for count in self.killed.values())

    @invariant()
    def nobody_is_convicted_who_was_not_at_two_deaths_and_the_only_suspect_at_one(self) -> None:
        for request in (b"%d" % one for one in range(6)):
            if self.suspects.verdict(request) == "convicted":
                assert self.deaths_of[request] >= 2 and request in self.was_alone


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=40)
