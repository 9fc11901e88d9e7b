"""Requests that end the engine, at a gateway: suspects go one at a time, the one that is to blame is refused, and all
others are answered."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
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

from modelyard.gateway.budget import Budget
from modelyard.gateway.client import ClientConnection
from modelyard.gateway.upstream import UpstreamConnection
from modelyard.records.topology import Failover, Replica

WHOLE = STREAM_HEAD + chunked(event("a"), USAGE_EVENT, DONE) + LAST_CHUNK


def ask_of(prompt: str, **fields: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": prompt}], **fields)


@dataclass
class Asker:
    client: ClientConnection
    transport: FakeTransport

    def told(self) -> tuple[int, dict[str, Any]]:
        """Status and body of the plain answer, (0, {}) while there is none."""
        found = split_responses(self.transport.take())
        return (found[0][0], json.loads(found[0][2])) if found else (0, {})


@dataclass
class Fleet:
    """Replicas whose engines tell which prompts they have got. `wait` idle connections are at each."""

    folder: Path
    names: tuple[str, ...] = ("r0", "r1")
    failover: dict[str, Any] = field(default_factory=dict[str, Any])
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.launches = dict.fromkeys(self.names, 0)
        self.world = World(self.folder, shape=self.shape())
        self.admission = self.world.worker.admissions[MODEL]
        self.admission.retries = Budget(at=self.admission.retries.at, tokens=60.0)
        self.engines: dict[str, list[tuple[UpstreamConnection, FakeTransport]]] = {}
        for name in self.names:
            self.connect(name)

    def shape(self) -> Any:
        replicas = tuple(
            Replica(name=name, launch=f"{number}", address=f"unix:/{name}-{number}", max_in_flight=8)
            for name, number in self.launches.items()
        )
        return deployment(replicas=replicas, failover=Failover(**self.failover), **self.more)

    def connect(self, name: str, count: int = 8) -> None:
        self.engines[name] = [self.world.engine(name) for _ in range(count)]

    def ask(self, prompt: str, **fields: Any) -> Asker:
        client, transport = self.world.client()
        client.data_received(post(ask_of(prompt, **fields)))
        return Asker(client, transport)

    def at(self, name: str) -> dict[str, tuple[UpstreamConnection, FakeTransport]]:
        """Who is in flight at a replica now, by prompt."""
        found: dict[str, tuple[UpstreamConnection, FakeTransport]] = {}
        for connection, transport in self.engines[name]:
            if transport.written and not transport.is_closing():
                body = bytes(transport.written).rpartition(b"\r\n\r\n")[2]
                found[json.loads(body)["messages"][0]["content"]] = (connection, transport)
        return found

    def says(self, name: str, prompt: str, data: bytes) -> None:
        connection, transport = self.at(name)[prompt]
        transport.take()
        connection.data_received(data)

    def dies(self, name: str) -> None:
        for _, transport in self.engines[name]:
            if not transport.is_closing():
                transport.lose()

    def is_gone(self, name: str) -> None:
        """Control has noticed, and started it anew."""
        self.launches[name] += 1
        self.world.apply(self.shape())
        self.connect(name)

    def verdicts(self) -> list[tuple[int, str, str]]:
        return [(one.status, one.outcome, one.error) for one in self.world.records()]


def killed(fleet: Fleet, name: str) -> None:
    fleet.dies(name)
    fleet.is_gone(name)


def test_a_request_that_ends_two_engines_is_refused_and_never_sent_again(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, names=("r0", "r1", "r2"))
    asker = fleet.ask("poison")
    killed(fleet, "r0")
    [second] = [name for name in fleet.names if fleet.at(name)]
    fleet.dies(second)
    assert not any(fleet.at(name) for name in fleet.names), "nobody knows yet whether that one is dead: it waits"
    fleet.is_gone(second)
    status, body = asker.told()
    assert (status, body["error"]["code"]) == (422, "poison_request")
    assert fleet.ask("poison").told()[0] == 422
    assert not any(fleet.at(name) for name in fleet.names)
    assert fleet.verdicts() == [(422, "upstream_failed", "poison_request"), (422, "refused", "poison_request")]
    assert [one.replica for one in fleet.world.records()[0].tried] == ["r0", second]
    fleet.ask("harmless")
    assert sum(list(fleet.at(name)) == ["harmless"] for name in fleet.names) == 1


async def test_what_was_in_flight_with_it_is_answered_and_none_of_it_convicted(
    tmp_path: Path, eventually: Callable[..., Awaitable[object]]
) -> None:
    """Six at r0, which dies and stays away; r1, and what is started in its place, gets them one after the other."""
    fleet = Fleet(tmp_path)
    fleet.admission.seats["r1"].in_flight += 8
    prompts = ["poison", *(f"innocent {number}" for number in range(5))]
    askers = {prompt: fleet.ask(prompt) for prompt in prompts}
    assert sorted(fleet.at("r0")) == sorted(prompts)
    fleet.admission.seats["r1"].in_flight -= 8
    fleet.dies("r0")
    seen: list[str] = []
    while len(seen) < len(prompts):
        fleet.admission.seats["r0"].refusing = True
        await eventually(lambda: fleet.at("r1"))
        [prompt] = fleet.at("r1")
        seen.append(prompt)
        if prompt == "poison":
            killed(fleet, "r1")
        else:
            fleet.says("r1", prompt, answer())
    fleet.is_gone("r0")
    assert sorted(seen) == sorted(prompts), "each was sent once more, the poison too"
    told: dict[str, int] = {}

    def have_all() -> bool:
        told.update({prompt: status for prompt, asker in askers.items() if (status := asker.told()[0])})
        return len(told) == len(prompts)

    await eventually(have_all)
    assert told == {prompt: 422 if prompt == "poison" else 200 for prompt in prompts}


def test_fresh_requests_go_beside_a_suspect_and_only_it_is_convicted_if_the_launch_dies(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    asker = fleet.ask("poison")
    killed(fleet, "r0")
    fleet.admission.seats["r0"].in_flight += 8
    fresh = fleet.ask("fresh")
    assert sorted(fleet.at("r1")) == ["fresh", "poison"]
    fleet.admission.seats["r0"].in_flight -= 8
    killed(fleet, "r1")
    assert asker.told()[0] == 422
    fleet.says("r0", "fresh", answer())
    assert fresh.told()[0] == 200


def test_a_suspect_that_waits_holds_up_nobody_of_its_key(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.admission.seats["r1"].in_flight += 8
    fleet.ask("a")
    fleet.ask("b")
    fleet.admission.seats["r1"].in_flight -= 8
    fleet.dies("r0")
    assert len(fleet.at("r1")) == 1 and fleet.admission.queue.waiting == 1
    fleet.admission.seats["r0"].refusing = True
    fleet.ask("fresh")
    assert "fresh" in fleet.at("r1") and fleet.admission.queue.waiting == 1


def test_a_stream_that_passes_the_point_where_it_was_lost_lets_the_next_suspect_go(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.admission.seats["r1"].in_flight += 8
    for prompt in "ab":
        fleet.ask(prompt, stream=True)
    fleet.admission.seats["r1"].in_flight -= 8
    fleet.dies("r0")
    [first] = fleet.at("r1")
    connection, transport = fleet.at("r1")[first]
    transport.take()
    connection.data_received(STREAM_HEAD + chunked(event("a")))
    [second] = fleet.at("r1")
    assert {first, second} == {"a", "b"}
    connection.data_received(chunked(USAGE_EVENT, DONE) + LAST_CHUNK)
    fleet.says("r1", second, WHOLE)
    assert [one.outcome for one in fleet.world.records()] == ["complete"] * 2
    assert fleet.admission.seats["r1"].suspects == 0 and not fleet.admission.suspects.verdict(b"")


def test_no_suspect_goes_to_a_launch_that_another_one_may_just_have_ended(tmp_path: Path) -> None:
    """Its place is free once its connection is lost, and nobody knows yet that nobody listens there any more."""
    fleet = Fleet(tmp_path, names=("r0", "r1"))
    fleet.admission.seats["r1"].in_flight += 8
    for prompt in ("poison", "innocent"):
        fleet.ask(prompt)
    fleet.admission.seats["r1"].in_flight -= 8
    fleet.dies("r0")
    [first] = fleet.at("r1")
    fleet.at("r1")[first][1].lose()
    assert not fleet.at("r1") and fleet.admission.queue.waiting == 1
    fleet.ask("fresh")
    assert list(fleet.at("r1")) == ["fresh"], "others go there as ever"
    fleet.admission.suspects.lived(fleet.admission.seats["r1"].launch, time.monotonic())
    fleet.admission.advance()
    assert len(fleet.at("r1")) == 2, "it lives: the next suspect goes there"


def test_a_suspect_is_told_at_once_where_every_launch_that_we_know_of_is_dead(tmp_path: Path) -> None:
    """It was told of the next launch after its request had gone to the one before, at the same address, and that is
    dead too: found out by a connection that was refused."""
    fleet = Fleet(tmp_path, names=("r0",))
    asker = fleet.ask("a question")
    before = fleet.engines["r0"]
    fleet.is_gone("r0")
    other = fleet.ask("another")
    now = time.monotonic()
    fleet.dies("r0")
    fleet.admission.suspects.died(fleet.admission.seats["r0"].launch, now)
    assert other.told()[0] == 503
    for _, transport in before:
        if not transport.is_closing():
            transport.lose()
    assert asker.told()[0] == 503
    assert not fleet.admission.queue.waiting


def test_one_that_dies_in_the_middle_is_isolated_to_its_end_when_it_is_asked_again(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    for name in fleet.names:
        fleet.ask("poison", stream=True)
        connection, transport = fleet.at(name)["poison"]
        transport.take()
        connection.data_received(STREAM_HEAD + chunked(event("a")))
        assert fleet.admission.seats[name].suspects == (name == "r1")
        killed(fleet, name)
    assert fleet.ask("poison", stream=True).told()[0] == 422
    assert [one.outcome for one in fleet.world.records()] == ["truncated", "truncated", "refused"]


def test_one_that_died_in_the_middle_is_isolated_until_it_is_beyond_that_point(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ask("long", stream=True)
    fleet.says("r0", "long", STREAM_HEAD + chunked(*[event("a")] * 5))
    killed(fleet, "r0")
    fleet.ask("long", stream=True)
    [(connection, transport)] = [one for name in fleet.names for one in fleet.at(name).values()]
    [seats] = [one for one in fleet.admission.seats.values() if one.suspects]
    transport.take()
    connection.data_received(STREAM_HEAD + chunked(*[event("a")] * 5))
    fleet.world.service.sweep()
    assert seats.suspects == 1, "this is where it was lost"
    connection.data_received(chunked(*[event("a")] * 5))
    fleet.world.service.sweep()
    assert seats.suspects == 0
    connection.data_received(chunked(USAGE_EVENT, DONE) + LAST_CHUNK)
    assert [one.outcome for one in fleet.world.records()] == ["truncated", "complete"]


def test_a_stream_that_is_resumed_keeps_the_fingerprint_of_what_was_asked(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, failover={"on_broken_stream": "resume"}, more={"continues_chat": True})
    fields = {"stream": True, "temperature": 0}
    asker = fleet.ask("poison", **fields)
    for name in fleet.names:
        [(connection, transport)] = fleet.at(name).values()
        transport.take()
        connection.data_received(STREAM_HEAD + chunked(event("a")))
        killed(fleet, name)
    assert asker.transport.is_closing() and b"[DONE]" not in asker.transport.written
    assert fleet.ask("poison", **fields).told()[0] == 422


def test_a_reset_by_an_engine_that_goes_on_answering_counts_for_nothing(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    asker = fleet.ask("unlucky")
    fleet.at("r0")["unlucky"][1].lose()
    fleet.says("r1", "unlucky", answer())
    assert asker.told()[0] == 200 and fleet.admission.suspects.doubted()
    fleet.ask("next")
    [name] = [name for name in fleet.names if fleet.at(name)]
    fleet.says(name, "next", answer())
    if name == "r1":
        fleet.ask("next")
        fleet.says("r0", "next", answer())
    assert not fleet.admission.suspects


def test_what_a_draining_replica_cuts_is_not_suspected(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ask("long")
    shape = fleet.shape()
    draining = tuple(msgspec.structs.replace(one, draining=one.name == "r0") for one in shape.replicas)
    fleet.world.apply(msgspec.structs.replace(shape, replicas=draining))
    fleet.dies("r0")
    assert not fleet.admission.suspects


async def test_a_loss_on_a_connection_that_had_been_idle_is_known_by_the_fresh_one_that_is_refused(
    tmp_path: Path, eventually: Callable[..., Awaitable[object]]
) -> None:
    fleet = Fleet(tmp_path)
    fleet.ask("first")
    fleet.says("r0", "first", answer())
    fleet.admission.seats["r1"].in_flight += 8
    fleet.ask("poison")
    fleet.admission.seats["r1"].in_flight -= 8
    fleet.dies("r0")
    await eventually(lambda: fleet.at("r1"))
    assert list(fleet.at("r1")) == ["poison"] and fleet.admission.seats["r1"].suspects == 1
    assert not fleet.admission.suspects.doubted(), "that r0 is dead is known"


def test_another_engine_knows_no_suspects_and_a_new_topology_of_the_same_keeps_them(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ask("poison")
    killed(fleet, "r0")
    killed(fleet, "r1")
    assert fleet.ask("poison").told()[0] == 422
    fleet.world.apply(fleet.shape())
    assert fleet.ask("poison").told()[0] == 422
    fleet.world.apply(msgspec.structs.replace(fleet.shape(), engine="another"))
    assert not fleet.admission.suspects


def test_switched_off_nobody_is_suspected(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, failover={"poison_deaths": 0})
    fleet.ask("poison")
    killed(fleet, "r0")
    killed(fleet, "r1")
    assert not fleet.admission.suspects


def test_no_word_of_a_poison_request_stands_in_the_journal(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ask("unspeakable")
    killed(fleet, "r0")
    killed(fleet, "r1")
    assert fleet.ask("unspeakable").told()[0] == 422
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"poison_request" in written and b"unspeakable" not in written
