"""A stream whose first token is late is sent to a second replica: the faster one answers, the other is given up, and
nobody pays twice."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_fakes import (
    DONE,
    LAST_CHUNK,
    MODEL,
    STREAM_HEAD,
    USAGE_EVENT,
    FakeTransport,
    World,
    chat,
    chunked,
    deployment,
    event,
    post,
    split_responses,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.gateway.admission import Queued, Waiter
from modelyard.gateway.asking import Asking, Result
from modelyard.gateway.balance import choose, replay
from modelyard.gateway.breaker import Event
from modelyard.gateway.budget import Budget
from modelyard.gateway.client import ClientConnection
from modelyard.gateway.hedging import FLOOR_S, REMEMBERED, VOLUME, Hedging
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.seats import Seats
from modelyard.gateway.shared_door import Place, SharedDoor
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.observe.story import tell
from modelyard.records.decision import Candidate, Decision
from modelyard.records.journal import RequestRecord
from modelyard.records.topology import Failover, Prices, Replica

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'


@dataclass
class FakeTimer:
    due_in_s: float
    work: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class FakeTimers:
    """Time stands still until the test lets it pass."""

    waiting: list[FakeTimer] = field(default_factory=list[FakeTimer])

    def later(self, delay_s: float, work: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(delay_s, work)
        self.waiting.append(timer)
        return timer

    def pass_by(self) -> None:
        """Until nothing waits any more."""
        while self.waiting:
            self.step()

    def step(self) -> None:
        """Until the next one is due."""
        timer = self.waiting.pop(0)
        if not timer.is_cancelled:
            timer.work()


class Nobody:
    """A waiter that must hear nothing."""

    def seated(self, seats: Seats, decision: Decision) -> None:
        raise AssertionError("seated")

    def not_seated(self, refusal: Refusal) -> None:
        raise AssertionError("told later")


def whole(text: str) -> bytes:
    return STREAM_HEAD + chunked(ROLE, event(text), USAGE_EVENT, DONE) + LAST_CHUNK


def said(text: str) -> bytes:
    """What the client has of `whole(text)`."""
    return ROLE + event(text) + DONE


class Hedged:
    """Replicas with an idle connection each, of which enough is known: a token is late after 0.2 s. The first request
    goes to r0, its hedge to the one with the number `second`."""

    second = 1

    def __init__(self, folder: Path, *, replicas: int = 2, seen: int = VOLUME, budget: float = 9.0, **changes: Any):
        limits = {"hedge_share": 0.02, **changes.pop("failover", {})}
        names = [f"r{number}" for number in range(replicas)]
        shape = deployment(
            replicas=tuple(
                Replica(name=name, launch=f"launch-{name}", address=f"unix:/{name}", max_in_flight=4) for name in names
            ),
            failover=Failover(**limits),
            **changes,
        )
        self.world = World(folder, shape=shape)
        self.timers = FakeTimers()
        self.world.worker.later = self.timers.later
        self.admission = self.world.worker.admissions[MODEL]
        self.admission.hedging = hedging = Hedging(budget=Budget(0.0, budget))
        for _ in range(seen):
            hedging.learn(0.2)
        self.admission.retries = Budget(self.admission.retries.at, 9.0)
        self.engines = [self.world.engine(name) for name in names]
        self.client, self.to_client = self.world.client()

    def ask(self, **fields: Any) -> None:
        self.client.data_received(post(chat(**{"stream": True, **fields})))

    def asked(self) -> list[int]:
        """Which engines were sent a request since the last look."""
        return [number for number, (_, transport) in enumerate(self.engines) if transport.take()]

    def says(self, number: int, data: bytes) -> None:
        self.engines[number][0].data_received(data)

    def dies(self, number: int) -> None:
        self.engines[number][1].lose()

    def is_given_up(self, number: int) -> bool:
        return self.engines[number][1].aborted

    def told(self) -> tuple[int, dict[str, str], bytes]:
        [response] = split_responses(self.to_client.take())
        return response

    def record(self) -> RequestRecord:
        """The one request's. No seat is held any more."""
        assert [seats.in_flight for seats in self.admission.seats.values()] == [0] * len(self.engines)
        [record] = self.world.records()
        return record

    def with_two_under_way(self) -> Hedged:
        self.ask()
        assert self.asked() == [0]
        self.timers.pass_by()
        [self.second] = self.asked()
        return self


def hedged(folder: Path, **changes: Any) -> Hedged:
    return Hedged(folder, **changes).with_two_under_way()


# Who wins.


@pytest.mark.parametrize(("first", "kind"), [(0, "hedge_lost"), (1, "outrun")])
def test_the_one_that_has_a_token_first_answers_and_the_other_is_given_up(
    tmp_path: Path, first: int, kind: str
) -> None:
    two = hedged(tmp_path)
    other = 1 - first
    two.says(other, STREAM_HEAD + chunked(ROLE))
    assert not two.to_client.written, "a role is no token"
    two.says(first, STREAM_HEAD + chunked(ROLE, event("a")))
    assert two.is_given_up(other)
    two.says(other, chunked(event("never")))
    two.says(first, chunked(event("b"), USAGE_EVENT, DONE) + LAST_CHUNK)
    status, _, body = two.told()
    assert (status, body) == (200, ROLE + event("a") + event("b") + DONE)
    record = two.record()
    assert (record.outcome, record.replica, record.attempts) == ("complete", f"r{first}", 2)
    [tried] = record.tried
    assert (tried.replica, tried.kind, tried.failed) == (f"r{other}", kind, False)
    assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (5, 7, "engine")
    assert record.decision is not None and record.decision.replica == record.replica and replay(record.decision)


def test_the_answer_is_paid_for_once(tmp_path: Path) -> None:
    two = hedged(tmp_path, prices=Prices("EUR", input_pico=10, cached_input_pico=10, output_pico=100))
    two.says(1, whole("a"))
    assert two.record().cost_pico == 5 * 10 + 7 * 100


def test_a_whole_stream_without_a_token_is_an_answer_too(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    two.says(1, STREAM_HEAD + chunked(ROLE, DONE) + LAST_CHUNK)
    assert two.told()[2] == ROLE + DONE and two.is_given_up(0)
    assert two.record().replica == "r1"


def test_what_an_engine_refuses_is_the_answer_whichever_it_is(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    two.says(1, b"HTTP/1.1 400 X\r\ncontent-length: 2\r\n\r\n{}")
    assert two.told()[0] == 400 and two.is_given_up(0)
    record = two.record()
    assert (record.outcome, [one.kind for one in record.tried]) == ("refused", ["outrun"])


@pytest.mark.parametrize("first", [0, 1])
def test_a_resumable_stream_keeps_what_its_winner_said_alone(tmp_path: Path, first: int) -> None:
    """Both have begun to say something: only one of them is what the client has when that one dies."""
    resume = {"on_broken_stream": "resume"}
    two = Hedged(tmp_path, replicas=3, failover=resume)
    two.admission.deployment = msgspec.structs.replace(two.admission.deployment, continues_chat=True)
    two.ask(temperature=0)
    two.timers.pass_by()
    pair = two.asked()
    two.says(pair[1 - first], STREAM_HEAD + chunked(ROLE))
    two.says(pair[first], STREAM_HEAD + chunked(ROLE, event("a")))
    two.engines[pair[1 - first]] = two.world.engine(f"r{pair[1 - first]}")
    two.dies(pair[first])
    [third] = [number for number, (_, transport) in enumerate(two.engines) if transport.written]
    sent = bytes(two.engines[third][1].written)
    assert b'{"role":"assistant","content":"a"}' in sent
    two.says(third, whole("b"))
    assert two.told()[2] == ROLE + event("a") + b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n' + DONE
    record = two.record()
    assert (record.resumed, record.outcome, len(record.tried)) == (1, "complete", 2)


# One fails, or both do.


@pytest.mark.parametrize("is_first", [True, False])
def test_one_that_fails_costs_nothing_while_the_other_is_under_way(tmp_path: Path, is_first: bool) -> None:
    two = hedged(tmp_path, replicas=3)
    failing, left = (0, two.second) if is_first else (two.second, 0)
    two.dies(failing)
    assert two.asked() == [], "nobody else is asked: there is one left"
    two.says(left, whole("a"))
    assert two.told()[2] == said("a")
    record = two.record()
    assert (record.replica, record.attempts) == (f"r{left}", 2)
    [tried] = record.tried
    assert (tried.replica, tried.kind, tried.cause) == (f"r{failing}", "failed", "the engine closed the connection")
    assert two.admission.retries.tokens == 9.0, "it was no retry"
    assert two.admission.seats[f"r{failing}"].breaker.failed == 1


@pytest.mark.parametrize("step", [1, -1])
def test_where_both_fail_a_third_is_asked_as_ever(tmp_path: Path, step: int) -> None:
    three = hedged(tmp_path, replicas=3, failover={"poison_deaths": 0})
    for number in (0, three.second)[::step]:
        three.dies(number)
    [third] = three.asked()
    assert third not in (0, three.second)
    three.timers.pass_by()
    assert three.asked() == [], "one hedge for one request"
    three.says(third, whole("a"))
    assert three.told()[0] == 200
    record = three.record()
    assert ([one.kind for one in record.tried], record.attempts) == (["failed", "failed"], 3)


def test_where_both_fail_and_nobody_is_left_the_client_is_told(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    two.says(1, b"HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbusy")
    assert not two.to_client.written
    two.dies(0)
    assert two.told()[0] == 503
    assert two.record().outcome == "upstream_failed"


def test_a_failure_before_a_token_is_late_is_a_retry_and_no_hedge(tmp_path: Path) -> None:
    three = Hedged(tmp_path, replicas=3)
    three.ask()
    three.asked()
    three.dies(0)
    [other] = three.asked()
    three.timers.pass_by()
    assert three.asked() == []
    three.says(other, whole("a"))
    assert three.record().attempts == 2


# Ends.


def test_a_client_that_leaves_is_waited_for_by_neither(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    two.to_client.lose()
    assert two.is_given_up(0) and two.is_given_up(1)
    record = two.record()
    assert (record.outcome, record.replica) == ("client_gone", "r0")
    [tried] = record.tried
    assert (tried.replica, tried.kind) == ("r1", "hedge_lost")
    assert tried.cause == "the request ended before either had answered"


def test_a_client_that_leaves_before_a_token_is_late_takes_the_timer_along(tmp_path: Path) -> None:
    two = Hedged(tmp_path)
    two.ask()
    two.to_client.lose()
    two.asked()
    two.timers.pass_by()
    assert two.asked() == [] and two.record().tried == ()


def test_a_gateway_that_stops_gives_both_up(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    exchange = two.client.exchange
    assert exchange is not None
    exchange.gateway_stops()
    assert two.is_given_up(0) and two.is_given_up(1)
    assert two.told()[0] == 503 and two.record().outcome == "gateway_stopped"


def test_a_client_that_reads_slowly_holds_both_back(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    two.client.pause_writing()
    assert [transport.reading for _, transport in two.engines] == [False, False]
    two.client.resume_writing()
    assert [transport.reading for _, transport in two.engines] == [True, True]


def test_a_late_token_is_not_asked_for_at_a_third_while_two_are_asked(tmp_path: Path) -> None:
    three = hedged(tmp_path, replicas=3, failover={"first_token_s": 5.0})
    exchange = three.client.exchange
    assert exchange is not None and exchange.attempt is not None
    exchange.check_progress(exchange.attempt.began + 6.0)
    assert three.asked() == [] and not three.is_given_up(0)


def test_two_that_say_nothing_at_all_are_both_given_up_in_the_end(tmp_path: Path) -> None:
    two = hedged(tmp_path, first_byte_timeout_s=3.0)
    exchange = two.client.exchange
    assert exchange is not None and exchange.attempt is not None
    began = exchange.attempt.began
    exchange.check_progress(began)
    exchange.check_progress(began + 4.0)
    exchange.check_progress(began + 4.5)
    assert two.is_given_up(0) and two.is_given_up(1)
    assert two.told()[0] == 503
    record = two.record()
    assert (record.outcome, [one.kind for one in record.tried]) == ("upstream_failed", ["late"])


def test_a_token_that_lies_there_already_is_read_before_anybody_is_asked(tmp_path: Path) -> None:
    """Our own loop was held up: its timers run first, then it reads."""
    two = Hedged(tmp_path)
    two.ask()
    two.timers.step()
    two.says(0, whole("a"))
    two.asked()
    two.timers.pass_by()
    assert two.asked() == [] and two.record().tried == ()


def test_only_tokens_teach_when_one_is_late(tmp_path: Path) -> None:
    two = Hedged(tmp_path, seen=VOLUME - 1)
    two.ask()
    two.says(0, b"HTTP/1.1 400 X\r\ncontent-length: 2\r\n\r\n{}")
    two.to_client.take()
    assert two.admission.hedging.late_s(0.02) is None
    two.ask()
    two.says(1, whole("a"))
    assert two.admission.hedging.late_s(0.02) == 0.2


def test_the_seat_of_the_loser_goes_to_the_next_that_waits(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    for seats in two.admission.seats.values():
        seats.in_flight = seats.replica.max_in_flight
    other, _ = two.world.client()
    other.data_received(post(chat()))
    assert two.admission.queue.waiting == 1
    two.world.engine("r1")
    two.says(0, whole("a"))
    assert two.admission.queue.waiting == 0


def test_the_loser_teaches_its_breaker_nothing(tmp_path: Path) -> None:
    two = Hedged(tmp_path)
    seats = two.admission.seats["r1"]
    seats.breaker = msgspec.structs.replace(seats.breaker, state="half_open")
    two.with_two_under_way()
    assert seats.breaker.probing
    two.says(0, whole("a"))
    assert (seats.breaker.state, seats.breaker.probing) == ("half_open", False), "another one may try"


# Whether there is a hedge at all.


def test_off_unless_it_is_wanted_and_then_nothing_is_watched(tmp_path: Path) -> None:
    two = Hedged(tmp_path, failover={"hedge_share": 0.0})
    two.ask()
    assert two.timers.waiting == []
    assert two.client.exchange is not None and two.client.exchange.hedge is None
    two.says(0, whole("a"))
    assert two.told()[0] == 200
    assert Failover().hedge_share == 0.0


@pytest.mark.parametrize(
    "asked",
    [
        {"stream": False},
        {"messages": [{"role": "user", "content": "x" * 2000}]},
    ],
)
def test_plain_answers_and_long_prompts_are_not_hedged(tmp_path: Path, asked: dict[str, Any]) -> None:
    two = Hedged(tmp_path)
    two.ask(**asked)
    two.asked()
    two.timers.pass_by()
    assert two.asked() == []


def test_an_operator_may_allow_longer_prompts(tmp_path: Path) -> None:
    two = Hedged(tmp_path, failover={"hedge_prompt_tokens": 1000})
    two.ask(messages=[{"role": "user", "content": "x" * 2000}])
    two.timers.pass_by()
    assert two.asked() == [0, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": VOLUME - 1},
        {"budget": 0.9},
        {"replicas": 1},
        {"failover": {"sendings": 1}},
    ],
    ids=["too few were seen", "no budget", "no other replica", "one sending only"],
)
def test_without_a_reason_or_a_right_to_it_there_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    two = Hedged(tmp_path, **changes)
    two.ask()
    two.asked()
    two.timers.pass_by()
    assert two.asked() == []
    two.says(0, whole("a"))
    assert two.told()[0] == 200 and two.record().tried == ()


def full(two: Hedged) -> None:
    two.admission.seats["r1"].in_flight = 4


def refusing(two: Hedged) -> None:
    two.admission.seats["r1"].refusing = True


def taken_out(two: Hedged) -> None:
    seats = two.admission.seats["r1"]
    seats.breaker = msgspec.structs.replace(seats.breaker, state="open", until=1e18)


def under_pressure(two: Hedged) -> None:
    two.world.worker.pressure.level = 1


def somebody_waits(two: Hedged) -> None:
    for seats in two.admission.seats.values():
        seats.in_flight += 4
    other, _ = two.world.client()
    other.data_received(post(chat()))
    for seats in two.admission.seats.values():
        seats.in_flight -= 4


def slow_reader(two: Hedged) -> None:
    two.client.pause_writing()


@pytest.mark.parametrize("hindrance", [full, refusing, taken_out, under_pressure, somebody_waits, slow_reader])
def test_a_hedge_is_sent_only_where_it_takes_nothing_from_anybody(
    tmp_path: Path, hindrance: Callable[[Hedged], None]
) -> None:
    two = Hedged(tmp_path)
    two.ask()
    hindrance(two)
    two.asked()
    budget = two.admission.hedging.budget
    two.timers.pass_by()
    assert two.asked() == []
    assert two.admission.hedging.budget is budget, "nothing of the share is lost"
    assert two.client.exchange is not None and two.client.exchange.attempt is not None


def another_lately_had_half_of_the_seats(two: Hedged) -> None:
    shares = two.admission.shares
    shares.asked("another", 1.0, 0.0)
    for _ in range(4):
        shares.took("another")
    for _ in range(4):
        shares.gave("another")
    shares.tidy(0.0, 8)


def test_a_request_that_may_have_ended_an_engine_is_not_sent_to_two(tmp_path: Path) -> None:
    three = Hedged(tmp_path, replicas=3)
    three.ask()
    three.dies(0)
    three.asked()
    three.engines += [three.world.engine(f"r{number}") for number in range(3)]
    again, _ = three.world.client()
    again.data_received(post(chat(stream=True)))
    assert again.exchange is not None and again.exchange.asking.suspect
    three.asked()
    three.timers.pass_by()
    assert three.asked() == []


def test_seats_that_are_kept_for_other_keys_are_not_taken_by_a_hedge(tmp_path: Path) -> None:
    two = Hedged(tmp_path, reserved_seats=0.5)
    another_lately_had_half_of_the_seats(two)
    for _ in range(4):
        client, _ = two.world.client()
        two.world.engine("r0")
        two.world.engine("r1")
        client.data_received(post(chat(stream=True)))
    in_flight = [seats.in_flight for seats in two.admission.seats.values()]
    two.timers.pass_by()
    assert [seats.in_flight for seats in two.admission.seats.values()] == in_flight == [2, 2]
    assert two.admission.queue.waiting == 0, "it does not wait either"


def test_a_hedge_is_not_charged_to_the_key(tmp_path: Path) -> None:
    two = Hedged(tmp_path)
    two.ask()
    lane = two.admission.queue._lanes[0]  # type: ignore[reportPrivateUsage]
    [own] = lane.flows.values()
    before = own.given
    two.timers.pass_by()
    assert two.asked() == [0, 1]
    assert own.given == before + 1.0, "it counts as one token, whatever it asks for"
    assert before > 1000


def test_explain_tells_of_both(tmp_path: Path) -> None:
    two = hedged(tmp_path)
    two.says(1, whole("a"))
    told = "\n".join(chapter.text for chapter in tell(two.record()).chapters)
    assert "r0 (launch-r0) was outrun by one that was asked later" in told
    assert "from r1 (launch-r1, sending 2)" in told


@pytest.mark.parametrize("hindrance", [full, refusing, taken_out, somebody_waits])
def test_the_door_itself_gives_a_seat_at_once_or_says_no(tmp_path: Path, hindrance: Callable[[Hedged], None]) -> None:
    """Several workers: the one that asks knows only its own seats, the owner decides."""
    two = Hedged(tmp_path)
    hindrance(two)
    waiting = two.admission.queue.waiting
    asking = Asking(excluded=frozenset(("r0",)), at_once=True)
    with pytest.raises(Refusal, match="no seat is free at once"):
        two.admission.enter(Nobody(), asking, 0.0)
    assert two.admission.queue.waiting == waiting


# Several workers: another one owns the seats, and its word takes a moment.


@dataclass
class FarOwner:
    """Another worker owns the door. What it is asked waits until the test answers."""

    is_here: bool = False
    workers: int = 2
    asked: list[Place] = field(default_factory=list[Place])
    forgotten: list[Queued] = field(default_factory=list[Queued])

    def ask(self, door: SharedDoor, waiter: Waiter, asking: Asking, now: float) -> Queued:
        self.asked.append(Place(waiter, asking, now + 30.0, door=door))
        return self.asked[-1]

    def left(self, door: SharedDoor, seats: Seats, result: Result, asking: Asking) -> None: ...

    def learned(self, door: SharedDoor, seats: Seats, event: Event) -> None: ...

    def expire(self, door: SharedDoor, now: float) -> None: ...

    def forget(self, door: SharedDoor, ticket: Queued) -> None:
        self.forgotten.append(ticket)

    def grant(self, replica: str) -> None:
        place = self.asked.pop(0)
        decision = choose((Candidate(replica=replica, in_flight=0, max_in_flight=4),), 0)
        place.door.granted(place.waiter, place.asking, place.door.seats[replica], decision)


def far_owned(folder: Path) -> tuple[Hedged, FarOwner]:
    """A stream whose first token is late, and whose second seat has been asked for."""
    two, owner = Hedged(folder), FarOwner()
    known = two.admission
    door = SharedDoor(known.deployment, owner=owner, hedging=known.hedging, retries=known.retries)
    door.update(known.deployment)
    two.world.worker.admissions[MODEL] = two.admission = door
    two.engines = [two.world.engine(name) for name in ("r0", "r1")]
    two.ask()
    owner.grant("r0")
    assert two.asked() == [0]
    two.timers.pass_by()
    [place] = owner.asked
    assert place.asking.at_once and place.asking.excluded == {"r0"}
    return two, owner


def test_a_hedge_gets_its_seat_from_the_owner(tmp_path: Path) -> None:
    two, owner = far_owned(tmp_path)
    owner.grant("r1")
    assert two.asked() == [1]
    two.says(1, whole("a"))
    assert two.told()[2] == said("a") and two.is_given_up(0)
    record = two.record()
    assert (record.replica, [one.kind for one in record.tried]) == ("r1", ["outrun"])
    assert owner.forgotten == []


@pytest.mark.parametrize("ends", ["with an answer", "with a failure", "with the client"])
def test_a_seat_that_has_not_come_is_not_waited_for(tmp_path: Path, ends: str) -> None:
    two, owner = far_owned(tmp_path)
    [place] = owner.asked
    if ends == "with an answer":
        two.says(0, whole("a"))
        assert two.told()[2] == said("a") and two.record().tried == ()
    elif ends == "with a failure":
        two.dies(0)
        assert not owner.asked[-1].asking.at_once, "it is sent again, as ever"
    else:
        two.to_client.lose()
        assert two.record().outcome == "client_gone"
    assert owner.forgotten == [place]


def test_an_owner_that_says_no_to_a_hedge_changes_nothing(tmp_path: Path) -> None:
    two, owner = far_owned(tmp_path)
    place = owner.asked.pop()
    place.waiter.not_seated(Refusal(503, "no seat is free at once", code="unavailable"))
    two.says(0, whole("a"))
    assert two.told()[2] == said("a") and owner.forgotten == []


# When a token is late.


@given(st.lists(st.floats(0.0, 100.0), max_size=3 * REMEMBERED), st.floats(0.001, 0.1))
def test_late_is_what_95_of_100_do_not_exceed_or_all_but_the_share(times_s: list[float], share: float) -> None:
    hedging = Hedging()
    for one in times_s:
        hedging.learn(one)
    recent = sorted(times_s[-REMEMBERED:])
    if len(recent) < VOLUME:
        assert hedging.late_s(share) is None
        return
    late_s, part = hedging.late_s(share), max(0.95, 1.0 - share)
    assert late_s is not None and late_s >= FLOOR_S
    assert sum(one <= late_s for one in recent) >= part * len(recent)
    below = [one for one in recent if one < late_s]
    assert late_s == FLOOR_S or len(below) < part * len(recent), "no shorter time would do"


@given(st.lists(st.tuples(st.floats(0.06, 10.0), st.floats(0.0, 1.0)), min_size=VOLUME, max_size=60))
def test_hedges_do_not_move_what_is_late(times_s: list[tuple[float, float]]) -> None:
    """A hedge is only ever sent after `late_s`: what it shortens stays above that."""
    alone, helped = Hedging(), Hedging()
    for one, _ in times_s:
        alone.learn(one)
    late_s = alone.late_s(0.05)
    assert late_s is not None
    for one, hedge_s in times_s:
        helped.learn(min(one, late_s + hedge_s) if one > late_s else one)
    assert helped.late_s(0.05) == late_s


@given(st.floats(0.001, 0.1), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20)), max_size=60))
def test_hedges_are_never_more_than_their_share_of_the_requests(share: float, steps: list[tuple[int, int]]) -> None:
    hedging, requests, sent = Hedging(), 0, 0
    for came, wanted in steps:
        requests += came
        sent += sum(hedging.take(requests, share) for _ in range(wanted))
        assert sent <= share * requests + 1e-6


# Any order of things.


@dataclass
class _Stream:
    """One request of the simulation."""

    client: ClientConnection
    transport: FakeTransport
    is_gone: bool = False


class _Simulation:
    """Three replicas that say, fail or keep silent in any order."""

    def __init__(self, folder: Path) -> None:
        self.served = Hedged(folder, replicas=3, budget=5.0, failover={"sendings": 3})
        self.streams: list[_Stream] = []
        self.engines: list[tuple[UpstreamConnection, FakeTransport]] = list(self.served.engines)

    def provide(self) -> None:
        """Idle connections, as good as new, for whatever may be sent: none has to be made."""
        for name, seats in self.served.admission.seats.items():
            for connection in seats.pool.idle:
                connection.used = False
            while len(seats.pool.idle) < 6:
                self.engines.append(self.served.world.engine(name))

    def ask(self, number: int) -> None:
        stream = _Stream(*self.served.world.client())
        self.streams.append(stream)
        stream.client.data_received(post(chat(stream=True)))

    def wait(self, number: int) -> None:
        self.served.timers.pass_by()

    def busy(self) -> list[tuple[UpstreamConnection, FakeTransport]]:
        return [one for one in self.engines if one[0]._exchange is not None]  # type: ignore[reportPrivateUsage]

    def answer(self, number: int) -> None:
        rest = whole("a").removeprefix(STREAM_HEAD)
        self._one_of(number, lambda engine, _: engine.data_received(rest if engine.answered else whole("a")))

    def begin(self, number: int) -> None:
        self._one_of(number, lambda engine, _: None if engine.answered else engine.data_received(STREAM_HEAD))

    def fail(self, number: int) -> None:
        """Never in the keep-alive race, which would make a connection: one that has served before counts as fresh."""

        def lose(engine: UpstreamConnection, transport: FakeTransport) -> None:
            engine.used = False
            transport.lose()

        self._one_of(number, lose)

    def leave(self, number: int) -> None:
        left = [one for one in self.streams if not one.is_gone]
        if left:
            stream = left[number % len(left)]
            stream.is_gone = True
            stream.transport.lose()

    def _one_of(self, number: int, act: Callable[[UpstreamConnection, FakeTransport], None]) -> None:
        busy = self.busy()
        if busy:
            act(*busy[number % len(busy)])


_ACTS = ("ask", "ask", "wait", "answer", "begin", "fail", "leave")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_ACTS), st.integers(0, 30)), max_size=40))
def test_in_any_order_every_request_ends_once_and_every_seat_is_given_back(acts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = _Simulation(Path(folder))
        for name, number in acts:
            world.provide()
            getattr(world, name)(number)
        for stream in world.streams:
            world.provide()
            if stream.client.exchange is not None:
                stream.client.exchange.client_gone()
        assert all(seats.in_flight == 0 for seats in world.served.admission.seats.values())
        assert not world.busy(), "no engine works for nobody"
        records = world.served.world.records()
        assert len(records) == len(world.streams)
        hedges = sum(not tried.failed for one in records for tried in one.tried)
        assert hedges <= 5 + 0.02 * len(records)
        for record in records:
            assert record.attempts <= len(record.tried) + 1
            assert record.attempts <= 4, "three sendings, of which two at a time make one more at most"
        for stream in world.streams:
            if not stream.is_gone and stream.transport.written:
                [(status, _, body)] = split_responses(stream.transport.take())
                assert status in (200, 429, 503)
                assert status != 200 or body == said("a")
