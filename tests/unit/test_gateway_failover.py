"""When a replica fails a request: another one is asked until the first piece of an answer, and everything is told."""

from __future__ import annotations

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
    answer,
    chat,
    chunked,
    deployment,
    event,
    post,
    split_responses,
)

from modelyard.gateway.balance import choose, replay
from modelyard.gateway.budget import Budget
from modelyard.gateway.lanes import holds_delta
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.records.decision import Candidate
from modelyard.records.topology import Failover, Replica

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
ERROR_EVENT = b'data: {"error":{"message":"EngineCore died"}}\n\n'


def failed_with(status: int) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: 4\r\n\r\nbusy" % status


class Two:
    """Two replicas with an idle connection each, and a client. Replicas take turns: the first request goes to r0."""

    def __init__(self, folder: Path, *, budget: float = 10.0, replicas: int = 2, **failover: Any) -> None:
        names = [f"r{number}" for number in range(replicas)]
        shape = deployment(
            replicas=tuple(
                Replica(name=name, launch=f"launch-{name}", address=f"unix:/{name}", max_in_flight=4) for name in names
            ),
            failover=Failover(**failover),
        )
        self.world = World(folder, shape=shape)
        self.admission = self.world.worker.admissions[MODEL]
        self.admission.retries = replace_budget(self.admission.retries, budget)
        self.client, self.to_client = self.world.client()
        self.engines = [self.world.engine(name) for name in names]

    def ask(self, *, stream: bool = True) -> None:
        self.client.data_received(post(chat(stream=stream)))

    def asked(self) -> list[int]:
        """Which engines were sent a request since the last look."""
        return [number for number, (_, transport) in enumerate(self.engines) if transport.take()]

    def engine(self, number: int) -> tuple[UpstreamConnection, FakeTransport]:
        return self.engines[number]

    def says(self, number: int, data: bytes) -> None:
        self.engines[number][0].data_received(data)

    def dies(self, number: int) -> None:
        self.engines[number][1].lose()

    def told(self) -> tuple[int, dict[str, str], bytes]:
        [response] = split_responses(self.to_client.take())
        return response


def replace_budget(budget: Budget, tokens: float) -> Budget:
    return Budget(at=budget.at, tokens=tokens, requests=budget.requests)


WHOLE = STREAM_HEAD + chunked(event("a"), event("b"), USAGE_EVENT, DONE) + LAST_CHUNK


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"HTTP/1.1 200",
        STREAM_HEAD,
        STREAM_HEAD + chunked(ROLE),
        STREAM_HEAD + chunked(b": ping\n\n"),
        STREAM_HEAD + chunked(ROLE) + b"25\r\ndata: {",
    ],
)
def test_until_the_first_piece_of_an_answer_a_death_costs_nothing(tmp_path: Path, before: bytes) -> None:
    two = Two(tmp_path)
    two.ask()
    assert two.asked() == [0]
    two.says(0, before) if before else None
    assert not two.to_client.written, "nothing was said yet"
    two.dies(0)
    assert two.asked() == [1]
    two.says(1, WHOLE)
    status, _, body = two.told()
    assert (status, body) == (200, event("a") + event("b") + DONE)
    [record] = two.world.records()
    assert (record.outcome, record.replica, record.attempts) == ("complete", "r1", 2)
    [tried] = record.tried
    assert (tried.replica, tried.launch, tried.kind) == ("r0", "launch-r0", "failed")
    assert tried.cause == "the engine closed the connection"
    assert 0 <= tried.began_s <= tried.ended_s <= record.total_s
    assert record.decision is not None and replay(record.decision)
    assert [one.barred for one in record.decision.candidates] == ["excluded", ""]
    assert all(seats.in_flight == 0 for seats in two.admission.seats.values())


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (failed_with(500), "failed"),
        (failed_with(503), "refused"),
        (failed_with(429), "refused"),
        (STREAM_HEAD + chunked(ERROR_EVENT, DONE) + LAST_CHUNK, "failed"),
        (answer(), "failed"),
        (STREAM_HEAD + LAST_CHUNK, "failed"),
        (b"nonsense\r\n\r\n", "failed"),
    ],
)
def test_whatever_fails_before_the_first_piece_another_replica_is_asked(tmp_path: Path, said: bytes, kind: str) -> None:
    two = Two(tmp_path)
    two.ask()
    two.says(0, said)
    two.says(1, WHOLE)
    assert two.told()[0] == 200
    [record] = two.world.records()
    assert [one.kind for one in record.tried] == [kind]
    assert "busy" not in str(record.tried), "an engine's own words stand nowhere"


def test_a_plain_answer_that_breaks_off_is_asked_for_elsewhere(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.ask(stream=False)
    two.says(0, answer()[:-5])
    two.dies(0)
    two.says(1, answer("hello"))
    assert b"hello" in two.told()[2]


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422, 501])
def test_what_an_engine_refuses_is_not_tried_elsewhere_and_is_no_failure(tmp_path: Path, status: int) -> None:
    two = Two(tmp_path)
    for _ in range(30):
        two.ask()
        [asked] = two.asked()
        two.says(asked, failed_with(status))
        assert two.told()[0] == status
    assert all(seats.breaker.failed == 0 for seats in two.admission.seats.values())
    assert all(record.tried == () for record in two.world.records())


def test_after_the_first_piece_nothing_is_tried_again(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.ask()
    two.asked()
    two.says(0, STREAM_HEAD + chunked(ROLE, event("a")))
    two.dies(0)
    assert two.asked() == []
    _, _, body = two.told()
    assert body.startswith(ROLE + event("a")) and b'"code":"truncated"' in body and b"[DONE]" not in body


def test_the_last_that_fails_is_what_the_client_hears_of(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.ask()
    two.dies(0)
    two.says(1, failed_with(500))
    status, _, body = two.told()
    assert status == 502 and b"failed with status 500" in body
    [record] = two.world.records()
    assert (record.outcome, record.attempts, len(record.tried)) == ("upstream_failed", 2, 1)


def test_no_more_than_so_many_are_tried(tmp_path: Path) -> None:
    five = Two(tmp_path, replicas=5, sendings=3, poison_deaths=0)
    five.ask()
    asked: list[int] = []
    for _ in range(3):
        [one] = five.asked()
        asked.append(one)
        five.dies(one)
    assert len(set(asked)) == 3 and five.asked() == []
    assert five.told()[0] == 503


def test_without_budget_nothing_is_sent_again(tmp_path: Path) -> None:
    two = Two(tmp_path, budget=0.0, retry_share=0.0, retries_per_s=0.0)
    two.ask()
    two.dies(0)
    assert two.told()[0] == 503
    assert two.world.records()[0].tried == ()


def test_a_retry_waits_for_a_seat_where_the_others_are_full(tmp_path: Path) -> None:
    two = Two(tmp_path)
    full = two.admission.seats["r1"]
    full.in_flight = full.replica.max_in_flight
    two.ask()
    two.dies(0)
    assert two.asked() == [0], "r0 is free, but has failed this one"
    full.in_flight -= 1
    two.admission.advance()
    assert two.asked() == [1]
    two.says(1, WHOLE)
    assert two.told()[0] == 200


def test_a_retry_that_waits_lets_others_pass(tmp_path: Path) -> None:
    two = Two(tmp_path)
    full = two.admission.seats["r1"]
    full.in_flight = full.replica.max_in_flight
    two.ask()
    two.dies(0)
    two.asked()
    engine, to_engine = two.world.engine("r0")
    other, to_other = two.world.client()
    other.data_received(post(chat()))
    two.admission.advance()
    assert to_engine.take()
    engine.data_received(answer())
    assert split_responses(to_other.take())[0][0] == 200
    assert not two.to_client.written


def test_a_retry_goes_before_those_of_its_key_that_had_no_seat_yet(tmp_path: Path) -> None:
    """Its replica was started anew, so it may go wherever they may, and nobody suspects it."""
    two = Two(tmp_path, poison_deaths=0)
    two.ask()
    shape = two.admission.deployment
    anew = tuple(msgspec.structs.replace(one, launch="anew", max_in_flight=0) for one in shape.replicas)
    two.world.apply(msgspec.structs.replace(shape, replicas=anew))
    others = [two.world.client()[0] for _ in range(3)]
    for other in others:
        other.data_received(post(chat()))
    two.dies(0)
    exchange = two.client.exchange
    assert exchange is not None
    assert exchange.asking.excluded == frozenset()
    assert exchange.ticket is not None
    assert two.admission.queue.next(lambda one: True) is exchange.ticket
    assert exchange.admitted is not None
    assert (exchange.admitted.entry.waiting, exchange.admitted.entry.ahead) == (3, 0)


def test_a_late_first_token_is_asked_for_elsewhere_while_another_is_free(tmp_path: Path) -> None:
    two = Two(tmp_path, first_token_s=5.0)
    two.ask()
    two.asked()
    exchange = two.client.exchange
    assert exchange is not None and exchange.attempt is not None
    began = exchange.attempt.began
    exchange.check_progress(began + 4.9)
    assert two.asked() == []
    full = two.admission.seats["r1"]
    full.in_flight = full.replica.max_in_flight
    exchange.check_progress(began + 6.0)
    assert exchange.attempt is not None and exchange.attempt.seats.replica.name == "r0", "no other one is free"
    full.in_flight = 0
    exchange.check_progress(began + 6.5)
    assert two.asked() == [1]
    assert two.engine(0)[1].aborted, "so the engine knows that nobody waits"
    two.says(1, WHOLE)
    assert two.told()[0] == 200
    [tried] = two.world.records()[0].tried
    assert (tried.kind, tried.cause) == ("late", "no first token within 5 s")


def test_events_without_a_piece_of_an_answer_do_not_go_on_for_ever(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.ask()
    two.says(0, STREAM_HEAD)
    for _ in range(5):
        two.says(0, chunked(b": " + b"x" * 1_000_000 + b"\n\n"))
    assert 1 in two.asked()


# Taken out, and panic.


def kill(two: Two, number: int) -> None:
    """Requests go to this one and die with it, until it is taken out."""
    seats = two.admission.seats[f"r{number}"]
    while not seats.breaker.takes_none:
        engine, to_engine = two.world.engine(f"r{number}")
        two.engines[number] = (engine, to_engine)
        two.ask(stream=False)
        for asked in two.asked():
            if asked == number:
                two.dies(number)
            else:
                two.says(asked, answer())
        for asked in two.asked():
            two.says(asked, answer())
        two.to_client.take()


def test_a_replica_that_loses_request_after_request_gets_none_for_a_while(tmp_path: Path) -> None:
    two = Two(tmp_path)
    kill(two, 0)
    for _ in range(6):
        two.ask()
        assert two.asked() == [1]
        two.says(1, WHOLE)
        status, headers, _ = two.told()
        assert status == 200 and "x-modelyard-degraded" not in headers
    until = two.admission.seats["r0"].breaker.until
    two.admission.expire(until)
    two.engines[0] = two.world.engine("r0")
    two.ask()
    assert two.asked() == [0], "one may try"
    other, _ = two.world.client()
    other.data_received(post(chat()))
    assert two.asked() == [1], "one, not two"
    two.says(0, WHOLE)
    assert two.admission.seats["r0"].breaker.state == "closed"


def test_where_all_are_taken_out_the_least_bad_is_asked_and_the_client_told(tmp_path: Path) -> None:
    two = Two(tmp_path, budget=0.0, retry_share=0.0, retries_per_s=0.0, poison_deaths=0)
    kill(two, 0)
    kill(two, 1)
    assert all(seats.breaker.takes_none for seats in two.admission.seats.values())
    breaker = two.admission.seats["r0"].breaker
    two.admission.seats["r0"].breaker = type(breaker)(state="open", openings=2, until=breaker.until + 10)
    two.engines[1] = two.world.engine("r1")
    two.ask()
    assert two.asked() == [1]
    two.says(1, WHOLE)
    status, headers, _ = two.told()
    assert status == 200 and headers["x-modelyard-degraded"].startswith("no replica is sound")
    decision = two.world.records()[-1].decision
    assert decision is not None and decision.panic and replay(decision)
    assert two.admission.seats["r1"].breaker.state == "half_open", "it answered: the next one may try"


def candidate(name: str, in_flight: int = 0, **changes: Any) -> Candidate:
    return Candidate(replica=name, in_flight=in_flight, max_in_flight=4, **changes)


def test_what_is_barred_is_not_chosen_while_one_is_sound() -> None:
    among = (candidate("a", barred="ejected"), candidate("b", 3), candidate("c", barred="refusing"))
    assert choose(among, 0).replica == "b"
    full = (candidate("a", barred="ejected"), candidate("b", 4))
    assert choose(full, 0).replica is None, "a full sound one is waited for"


def test_in_panic_what_failed_this_request_is_still_not_chosen() -> None:
    among = (candidate("a", barred="excluded"), candidate("b", barred="ejected", badness=900))
    decision = choose(among, 0)
    assert (decision.replica, decision.panic) == ("b", True)
    nobody = choose((candidate("a", barred="excluded"),), 0)
    assert (nobody.replica, nobody.reason) == (None, "every replica has failed this request")


@pytest.mark.parametrize(
    ("events", "delta"),
    [
        (ROLE, False),
        (b": ping\n\n", False),
        (DONE, False),
        (USAGE_EVENT, False),
        (b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', False),
        (b'data: {"choices":[{"text":"","index":0}]}\n\n', False),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[]}}]}\n\n', False),
        (event("a"), True),
        (ROLE + event("a"), True),
        (b'data: {"choices":[{"text":"a","index":0}]}\n\n', True),
        (b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n', True),
        (b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', True),
        (b"event: content_block_delta\ndata: {}\n\n", True),
        (b"data: what is this\n\n", True),
    ],
)
def test_what_is_a_piece_of_an_answer(events: bytes, delta: bool) -> None:
    assert holds_delta(events) is delta


def test_exclusion_is_a_value(tmp_path: Path) -> None:
    two = Two(tmp_path, poison_deaths=0)
    two.ask()
    exchange = two.client.exchange
    assert exchange is not None
    before = exchange.asking
    two.dies(0)
    assert before.excluded == frozenset()
    assert exchange.asking == msgspec.structs.replace(before, excluded=frozenset({"r0"}), again=True)


def test_a_replica_that_was_started_anew_is_asked_again(tmp_path: Path) -> None:
    two = Two(tmp_path, poison_deaths=0)
    two.ask()
    two.dies(0)
    assert two.asked() == [0, 1]
    shape = two.admission.deployment
    anew = tuple(msgspec.structs.replace(one, launch="anew") if one.name == "r0" else one for one in shape.replicas)
    two.world.apply(msgspec.structs.replace(shape, replicas=anew))
    two.engines[0] = two.world.engine("r0")
    two.dies(1)
    assert two.asked() == [0]
    two.says(0, WHOLE)
    assert two.told()[0] == 200
