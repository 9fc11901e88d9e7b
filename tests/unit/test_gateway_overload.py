"""What a worker gives up when it lacks memory, descriptors or time, and that it takes it all up again."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest
from gateway_fakes import World, answer, chat, get, post, split_responses
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.accepting import Accepting
from modelyard.gateway.connections import TURNED_AWAY
from modelyard.gateway.limits import WireLimits
from modelyard.gateway.overload import CALM, CLOSED, NO_IDLE, NO_READINGS, REFUSING, Readings, ladder, refuses
from modelyard.gateway.pressure import Pressure, connections_at_most, descriptor_limit, memory_limit_bytes


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    ("level", "readings", "after"),
    [
        (CALM, Readings(0.91, 0.91, 0.2), CALM),
        (CALM, Readings(memory=0.92), NO_IDLE),
        (CALM, Readings(descriptors=0.95), REFUSING),
        (CALM, Readings(lag_s=1.0), CLOSED),
        (CALM, Readings(memory=2.0), CLOSED),
        (REFUSING, Readings(memory=0.93), REFUSING),
        (REFUSING, Readings(memory=0.84), NO_IDLE),
        (REFUSING, Readings(memory=0.80), CALM),
        (CLOSED, Readings(memory=0.80, descriptors=0.89), CLOSED),
        (CLOSED, NO_READINGS, CALM),
    ],
)
def test_the_ladder(level: int, readings: Readings, after: int) -> None:
    assert ladder(level, readings) == after


levels = st.integers(CALM, CLOSED)
some_readings = st.builds(Readings, st.floats(0, 1.2), st.floats(0, 1.2), st.floats(0, 3))


@given(levels, some_readings)
def test_readings_that_stay_lead_to_a_level_that_stays(level: int, readings: Readings) -> None:
    after = ladder(level, readings)
    assert ladder(after, readings) == after


@given(levels, some_readings, some_readings)
def test_worse_readings_never_lead_to_a_lower_level(level: int, one: Readings, other: Readings) -> None:
    worse = Readings(
        max(one.memory, other.memory), max(one.descriptors, other.descriptors), max(one.lag_s, other.lag_s)
    )
    assert ladder(level, worse) >= max(ladder(level, one), ladder(level, other))


@given(levels, st.integers(-3, 3))
def test_whoever_goes_first_is_refused_last(level: int, priority: int) -> None:
    assert refuses(level, priority) >= refuses(level, priority + 1)
    assert refuses(CLOSED, priority)
    assert not refuses(NO_IDLE, priority)


# What is read.


def test_what_this_process_uses_is_read() -> None:
    pressure = Pressure.of_this_process()
    pressure.look(0.0)
    assert pressure.readings.memory > 0
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    before = pressure.readings.descriptors
    pressure.look(0.0)
    for one in opened:
        os.close(one)
    assert (pressure.readings.descriptors - before) * descriptor_limit() == pytest.approx(50, abs=1)
    assert memory_limit_bytes() > 1 << 20


def test_memory_and_descriptors_count_at_once_and_lag_when_it_lasts() -> None:
    pressure = Pressure(memory_limit_bytes=1)
    pressure.look(0.0)
    assert pressure.level == CLOSED
    pressure = Pressure(descriptors=1)
    pressure.look(0.0)
    assert pressure.level == CLOSED
    pressure = Pressure()
    levels = list[int]()
    for late_s in (2.0, 0.0, 2.0, 2.0, 0.6, 0.0):
        pressure.look(late_s)
        levels.append(pressure.level)
    assert levels == [CALM, CALM, CALM, CLOSED, REFUSING, CALM]


@pytest.mark.parametrize(("descriptors", "most"), [(65_536, 8192), (1024, 464), (256, 80), (10, 1)])
def test_connections_are_as_many_as_descriptors_allow(descriptors: int, most: int) -> None:
    assert connections_at_most(8192, descriptors) == most


# What is given up.


class Stuck(Pressure):
    def look(self, late_s: float) -> None:
        pass


def under(world: World, level: int) -> None:
    """The next sweeps find this level."""
    world.worker.pressure = Stuck(level=level)


def test_a_request_is_refused_from_its_head_alone_and_a_higher_priority_passes(world: World) -> None:
    world.add_key("my_aaaaaaaaaaaa_high", priority=1)
    under(world, REFUSING)
    body = chat()
    for secret, status in ((None, 503), ("my_aaaaaaaaaaaa_high", 200)):
        client, to_client = world.client()
        _, to_engine = world.engine()
        request = post(body) if secret is None else post(body, secret=secret)
        client.data_received(request[: -len(body)])
        if status == 200:
            assert to_client.take() == b""
            client.data_received(body)
            assert to_engine.take()
            to_engine.protocol.data_received(answer())
        [(got, headers, _)] = split_responses(to_client.take())
        assert got == status
        assert headers["connection"] == "close"
        if status == 503:
            assert int(headers["retry-after"]) >= 1
            assert to_client.ended
    refused, passed = world.records()
    assert (refused.status, refused.error, refused.key_id != "") == (503, "overloaded", True)
    assert passed.outcome == "complete"


def test_a_head_that_was_seen_before_is_refused_too(world: World) -> None:
    client, to_client = world.client()
    _, to_engine = world.engine()
    client.data_received(post(chat()))
    to_engine.protocol.data_received(answer())
    assert [status for status, _, _ in split_responses(to_client.take())] == [200]
    under(world, REFUSING)
    client.data_received(post(chat()))
    assert [status for status, _, _ in split_responses(to_client.take())] == [503]


def test_an_overloaded_gateway_still_answers_what_costs_nothing(world: World) -> None:
    under(world, CLOSED)
    client, to_client = world.client()
    client.data_received(get("/health"))
    assert [status for status, _, _ in split_responses(to_client.take())] == [200]


def test_who_has_no_key_learns_nothing_of_the_load(world: World) -> None:
    under(world, CLOSED)
    client, to_client = world.client()
    client.data_received(post(chat(), secret="my_nobody"))
    assert [status for status, _, _ in split_responses(to_client.take())] == [401]


def test_idle_connections_end_soon_and_answers_end_theirs(world: World) -> None:
    idle, to_idle = world.client()
    busy, to_busy = world.client()
    _, to_engine = world.engine()
    busy.data_received(post(chat()))
    under(world, NO_IDLE)
    world.service.sweep()
    assert not to_idle.is_closing() and idle.deadline <= time.monotonic() + 1.1
    idle.deadline = time.monotonic() - 1
    world.service.sweep()
    assert to_idle.is_closing()
    assert not to_busy.is_closing() and busy.deadline == float("inf")
    to_engine.protocol.data_received(answer())
    assert [status for status, _, _ in split_responses(to_busy.take())] == [200]
    _, to_next = world.client()
    assert not to_next.is_closing()


def test_after_an_overload_connections_live_on_again(world: World) -> None:
    under(world, REFUSING)
    under(world, CALM)
    client, to_client = world.client()
    _, to_engine = world.engine()
    client.data_received(post(chat()))
    to_engine.protocol.data_received(answer())
    [(status, headers, _)] = split_responses(to_client.take())
    assert status == 200 and "connection" not in headers


def test_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    world = World(tmp_path, WireLimits(connections=2))
    first = [world.client() for _ in range(2)]
    turned_away = [world.client()[1] for _ in range(TURNED_AWAY)]
    _, cut_off = world.client()
    assert all(not transport.is_closing() for _, transport in first)
    for transport in turned_away:
        [(status, headers, _)] = split_responses(transport.take())
        assert (status, headers["retry-after"]) == (503, "1")
        assert transport.ended
    assert cut_off.aborted and cut_off.take() == b""


# The listening socket.


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


async def test_a_pause_leaves_connections_waiting_and_loses_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = Accepting(listener, Greeter, None)
        await accepting.start()
        await accepting.follow(closed=True)
        assert accepting.paused
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        waiting = asyncio.create_task(reader.read())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        await accepting.follow(closed=False)
        assert await waiting == b"hello"
        writer.close()
        accepting.pause()


async def test_going_on_is_tried_again_where_there_is_no_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = Accepting(listener, Greeter, None)
        taken = socket.socket(fileno=os.dup(listener.fileno()))
        listener.detach()
        await accepting.follow(closed=False)
        assert accepting.paused
        taken.close()
