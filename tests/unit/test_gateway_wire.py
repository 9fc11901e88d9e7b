"""What a connection may hold, how fast it must bring and take it, and HTTP that is not quite HTTP."""

from __future__ import annotations

import gc
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import SECRET, World, get, post, split_responses

from modelyard.gateway.client import ClientConnection
from modelyard.gateway.connections import Connections, source_of
from modelyard.gateway.limits import WireLimits
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.routes import ROUTES, find, is_host, origin_form
from modelyard.selftest.cases.http import CASES, HttpCase

FEW = WireLimits(connections=5, connections_per_address=2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def statuses(data: bytes) -> tuple[int, ...]:
    return tuple(status for status, _, _ in split_responses(data))


# HTTP/1.1.


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20], ids=["byte-by-byte", "in-pieces", "whole"])
def test_http_is_read_as_its_standard_says_however_it_arrives(world: World, case: HttpCase, read_bytes: int) -> None:
    client, to_client = world.client()
    data = case.bytes_with(SECRET)
    for start in range(0, len(data), read_bytes):
        client.data_received(data[start : start + read_bytes])
    assert statuses(to_client.take()) == case.statuses
    assert (to_client.ended or to_client.closed) is case.closes


@pytest.mark.parametrize(
    ("target", "host", "origin"),
    [
        (b"/v1/models", b"a", b"/v1/models"),
        (b"http://a/v1/models?x", b"a", b"/v1/models?x"),
        (b"https://A:443/v1/models", b"a", b"/v1/models"),
        (b"http://a", b"a:80", b"/"),
        (b"http://a?x", b"a", b"/?x"),
        (b"http://a:81/x", b"", b"/x"),
        (b"*", b"a", b"*"),
        (b"//a/x", b"a", b"//a/x"),
        (b"file:///etc/passwd", b"a", b"file:///etc/passwd"),
    ],
)
def test_a_target_in_absolute_form_is_the_path_in_it(target: bytes, host: bytes, origin: bytes) -> None:
    assert origin_form(target, host) == origin


@pytest.mark.parametrize("target", [b"http://b/x", b"http://a:81/x", b"http:///x", b"http://u@a/x", b"http://a\\b/x"])
def test_a_target_that_names_another_host_is_refused(target: bytes) -> None:
    with pytest.raises(Refusal):
        origin_form(target, b"a")


def test_a_host_is_a_name_or_an_address_and_nothing_else() -> None:
    for good in (b"a", b"a:80", b"my_service:8000", b"10.0.0.1", b"[::1]", b"[::ffff:1.2.3.4]:8000", b"x.example."):
        assert is_host(good), good
    for bad in (b"", b":80", b"a:", b"a/b", b"a b", b"a@b", b"a?b", b"a#b", b"a%00", b"[::1", b"::1", b"a:b:c", b"a\\"):
        assert not is_host(bad), bad


def test_every_route_demands_a_key_unless_it_says_otherwise(world: World) -> None:
    """Generated from the route table: a route that is added without a thought is closed."""
    for route in ROUTES:
        path = route.endpoint + ("m" if route.kind == "model" else "")
        assert find(route.method.encode(), path.encode()) is route
        for line in ("", "authorization: Bearer wrong\r\n", "authorization: Basic x\r\n"):
            client, to_client = world.client()
            client.data_received(f"{route.method} {path} HTTP/1.1\r\nhost: x\r\n{line}\r\n".encode())
            assert statuses(to_client.take()) == (200 if route.open_to_all else 401,)


# Rates.


def later(world: World, connection: ClientConnection, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Time passes, and the sweep looks."""
    at = time.monotonic() + seconds
    monkeypatch.setattr("modelyard.gateway.client.now", lambda: at)
    monkeypatch.setattr(time, "monotonic", lambda: at)
    world.service.sweep()


def body_of(size: int) -> bytes:
    """A request with a body of `size` bytes, which is answered with 400 once it is whole."""
    return post(b"{" * size)


def test_a_body_that_comes_too_slowly_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client, to_client = world.client()
    request = body_of(100_000)
    client.data_received(request[:5_000])
    window_s = world.wire.rate_window_s
    assert client.deadline <= time.monotonic() + window_s
    later(world, client, monkeypatch, window_s + 1)
    assert statuses(to_client.take()) == (408,), "less than a kilobyte in a second"


def test_a_body_that_comes_fast_enough_is_waited_for_up_to_its_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, to_client = world.client()
    request = body_of(60_000)
    head = request.index(b"\r\n\r\n") + 4
    client.data_received(request[: head + 20_000])
    later(world, client, monkeypatch, 10.5)
    client.data_received(request[head + 20_000 : head + 40_000])
    later(world, client, monkeypatch, 10.5)
    assert to_client.take() == b""
    client.data_received(request[head + 40_000 :])
    assert statuses(to_client.take()) == (400,)
    slow, to_slow = world.client()
    slow.data_received(request[: head + 20_000])
    later(world, slow, monkeypatch, world.wire.body_timeout_s + 1)
    assert statuses(to_slow.take()) == (408,), "fast enough so far, but not done in time"


def test_a_client_that_takes_its_answer_slowly_but_steadily_keeps_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, to_client = world.client()
    to_client.unread = 60_000
    client.pause_writing()
    for unread in (40_000, 20_000):
        to_client.unread = unread
        later(world, client, monkeypatch, 10.5)
        assert not to_client.aborted
    to_client.unread = 15_000
    later(world, client, monkeypatch, 10.5)
    assert to_client.aborted


def test_the_rest_of_a_last_answer_may_be_read_at_the_same_rate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client, to_client = world.client()
    to_client.unread = 60_000
    client.data_received(get("/health", "connection: close"))
    assert to_client.closed
    to_client.unread = 30_000
    later(world, client, monkeypatch, 10.5)
    assert not to_client.aborted
    later(world, client, monkeypatch, 10.5)
    assert to_client.aborted


# Memory.


def test_chunks_of_next_to_nothing_are_not_read_for_long(tmp_path: Path) -> None:
    world = World(tmp_path, WireLimits(framing_bytes=5_000))
    client, to_client = world.client()
    head = post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    client.data_received(head)
    for _ in range(10):
        client.data_received(b"1\r\nx\r\n" * 50 + b"64\r\n" + b"y" * 100 + b"\r\n")
        assert to_client.take() == b""
    for _ in range(10):
        client.data_received(b"1\r\nx\r\n" * 50)
    assert statuses(to_client.take()) == (431,)


def test_what_follows_a_refusal_is_thrown_away_but_not_without_end(tmp_path: Path) -> None:
    world = World(tmp_path, WireLimits(body_bytes=4096))
    client, to_client = world.client()
    client.data_received(post(b"x" * 5000))
    assert statuses(to_client.take()) == (413,)
    client.data_received(b"x" * 4000)
    assert not to_client.aborted
    client.data_received(b"x" * 4000)
    assert to_client.aborted


def test_a_body_in_tiny_pieces_is_whole(world: World) -> None:
    client, to_client = world.client()
    request = body_of(20_000)
    for start in range(0, len(request), 7):
        client.data_received(request[start : start + 7])
    assert statuses(to_client.take()) == (400,)
    assert [record.bytes_in for record in world.records()] == [20_000]


def test_what_a_connection_held_is_gone_with_it_and_does_not_wait_for_the_collector(world: World) -> None:
    client, to_client = world.client()
    client.data_received(body_of(10_000)[:5_000])
    held = weakref.ref(client.receiving)  # type: ignore[type-var]
    gc.disable()
    try:
        to_client.lose()
        del client, to_client
        assert held() is None
    finally:
        gc.enable()


# Places.


def test_one_address_does_not_take_every_place(tmp_path: Path) -> None:
    world = World(tmp_path, FEW)
    greedy = [world.client(("203.0.113.5", port)) for port in range(3)]
    assert [to_client.aborted for _, to_client in greedy] == [False, False, True]
    other, to_other = world.client(("203.0.113.6", 1))
    assert not to_other.aborted
    other.data_received(get("/health"))
    assert statuses(to_other.take()) == (200,)
    for _, transport in greedy:
        transport.lose()
    assert not world.client(("203.0.113.5", 9))[1].aborted


def test_all_places_together_have_a_bound_too(tmp_path: Path) -> None:
    world = World(tmp_path, FEW)
    local = [world.client(("127.0.0.1", port))[1] for port in range(6)]
    assert [statuses(transport.take()) for transport in local] == [()] * 5 + [(503,)]
    assert [transport.ended for transport in local] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        (None, b""),
        ("", b""),
        (("127.0.0.1", 1), b""),
        (("127.8.9.10", 1), b""),
        (("::1", 1, 0, 0), b""),
        (("::ffff:127.0.0.1", 1, 0, 0), b""),
        (("203.0.113.5", 1), bytes([203, 0, 113, 5])),
        (("::ffff:203.0.113.5", 1, 0, 0), bytes([203, 0, 113, 5])),
        (("fe80::1%eth0", 1, 0, 0), bytes([0xFE, 0x80, 0, 0, 0, 0, 0, 0])),
    ],
)
def test_whom_a_connection_is_counted_for(peer: Any, source: bytes) -> None:
    assert source_of(peer) == source


def test_a_network_of_ipv6_counts_as_one() -> None:
    connections: Connections[int] = Connections(FEW)
    assert [connections.add(n, (f"2001:db8:1:2::{n}", n, 0, 0)) for n in (1, 2, 3)] == [True, True, False]
    assert connections.add(4, ("2001:db8:1:3::1", 1, 0, 0))
    assert connections.turned_away == 1
    for n in (1, 2, 3, 4, 4):
        connections.discard(n)
    assert connections.quiet.is_set()
    assert connections.add(5, ("2001:db8:1:2::1", 1, 0, 0))
