"""A client's trace on its way: into the record, on to the engine, past the heads that are remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_fakes import World, answer, chat, deployment, post

from modelyard.gateway.budget import Budget
from modelyard.gateway.trace import span_id
from modelyard.records.journal import RequestRecord
from modelyard.records.topology import Replica

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"traceparent: 00-{TRACE}-{PARENT}-01"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def asked(world: World, *lines: str) -> tuple[bytes, RequestRecord]:
    """What the engine got, and the record."""
    engine, wire = world.engine()
    client, _ = world.client()
    client.data_received(post(chat(), *lines))
    sent = wire.take()
    engine.data_received(answer())
    return sent, world.records()[-1]


def test_the_trace_stands_in_the_record_and_goes_on_with_our_span(world: World) -> None:
    sent, record = asked(world, TRACEPARENT, "tracestate: congo=1", "TraceState: rojo=2")
    assert (record.trace_id, record.trace_parent) == (TRACE, f"{PARENT}-01")
    ours = span_id(record.request_id)
    assert f"traceparent: 00-{TRACE}-{ours}-01\r\ntracestate: congo=1,rojo=2\r\n".encode() in sent


def test_a_client_without_a_trace_gets_none_and_sends_none_on(world: World) -> None:
    sent, record = asked(world)
    assert (record.trace_id, record.trace_parent) == ("", "") and b"trace" not in sent


@pytest.mark.parametrize(
    "lines",
    [
        ("traceparent: 00-nonsense",),
        (TRACEPARENT, TRACEPARENT),
        (TRACEPARENT.upper().replace("TRACEPARENT", "traceparent"),),
        ("tracestate: congo=1",),
    ],
)
def test_what_is_not_a_trace_is_neither_recorded_nor_sent_on(world: World, lines: tuple[str, ...]) -> None:
    sent, record = asked(world, *lines)
    assert record.trace_id == "" and b"trace" not in sent and record.outcome == "complete"


def test_each_request_of_a_connection_has_the_trace_that_it_sent(world: World) -> None:
    client, _ = world.client()
    other = TRACE.replace("0af7", "ffff")
    for line in (TRACEPARENT, TRACEPARENT, "", f"traceparent: 00-{other}-{PARENT}-00", "", ""):
        engine, _ = world.engine()
        client.data_received(post(chat(), *filter(None, [line])))
        engine.data_received(answer())
    assert [one.trace_id for one in world.records()] == [TRACE, TRACE, "", other, "", ""]


def test_a_refusal_is_part_of_the_trace_too(world: World) -> None:
    client, _ = world.client()
    client.data_received(post(chat(model="nobody"), TRACEPARENT))
    (record,) = world.records()
    assert (record.status, record.trace_id) == (404, TRACE)


def test_a_second_sending_bears_the_same_trace(tmp_path: Path) -> None:
    replicas = tuple(Replica(name=f"r{n}", launch="l", address="unix:/nowhere", max_in_flight=4) for n in range(2))
    world = World(tmp_path, shape=deployment(replicas=replicas))
    admission = world.worker.admissions["m"]
    admission.retries = Budget(at=admission.retries.at, tokens=1.0, requests=0)
    engines = [world.engine("r0"), world.engine("r1")]
    client, _ = world.client()
    client.data_received(post(chat(), TRACEPARENT))
    engines[0][0].data_received(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}")
    engines[1][0].data_received(answer())
    (record,) = world.records()
    assert record.outcome == "complete" and len(record.tried) == 1
    lines = f"traceparent: 00-{TRACE}-{span_id(record.request_id)}-01\r\n".encode()
    assert all(lines in wire.take() for _, wire in engines)
