"""What a client's connection reads, in which order it answers, and what it remembers between requests."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from gateway_fakes import (
    DONE,
    LAST_CHUNK,
    SECRET,
    STREAM_HEAD,
    World,
    answer,
    chat,
    chunked,
    deployment,
    event,
    get,
    post,
    split_responses,
)

from modelyard.gateway.client import ClientConnection
from modelyard.gateway.limits import WireLimits
from modelyard.gateway.refusals import Refusal
from modelyard.gateway.routes import Route, find
from modelyard.records.keys import KeyRevoked, Scopes

SMALL = WireLimits(head_bytes=2048, header_fields=20, body_bytes=4096)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> World:
    return World(tmp_path, SMALL)


def statuses(data: bytes) -> list[int]:
    return [status for status, _, _ in split_responses(data)]


def expire(world: World, connection: ClientConnection) -> None:
    """Time passes beyond the connection's deadline."""
    assert connection.deadline < float("inf"), "no deadline holds"
    connection.deadline = time.monotonic() - 1
    world.service.sweep()


# Routes.


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v1", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1//models", 404),
        ("GET", "/v1/./models", 404),
        ("GET", "/v1/x/../models", 404),
        ("GET", "/v1/%6dodels", 404),
        ("GET", "/V1/models", 404),
        ("GET", "/health/", 404),
        ("GET", "/health;x", 404),
        ("GET", "/health%00", 404),
        ("GET", "http://x/nothing", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("OPTIONS", "*", 404),
        ("DELETE", "/v1/models", 405),
        ("DELETE", "/v1/models/m", 405),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/health", 405),
    ],
)
def test_whatever_has_no_route_does_not_exist(world: World, method: str, target: str, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        find(method.encode(), target.encode())
    assert refused.value.status == status
    client, to_client = world.client()
    client.data_received(f"{method} {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    [(got, headers, body)] = split_responses(to_client.take())
    assert got == status
    assert "www-authenticate" not in headers
    assert target.encode() not in body
    assert ("allow" in headers) is (status == 405)
    assert world.records() == []


def test_a_query_does_not_change_the_route() -> None:
    assert isinstance(find(b"GET", b"/v1/models?x=/health"), Route)
    assert find(b"GET", b"/v1/models?x=/health").endpoint == "/v1/models"


def test_only_health_and_readiness_are_open_to_all() -> None:
    client_paths = ["/health", "/ready"]
    for path in client_paths:
        assert find(b"GET", path.encode()).open_to_all
    for method, path in ((b"GET", b"/v1/models"), (b"GET", b"/v1/models/m"), (b"POST", b"/v1/completions")):
        assert not find(method, path).open_to_all


def test_head_requests_are_answered_without_a_body(world: World) -> None:
    client, to_client = world.client()
    client.data_received(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n" + get("/health"))
    first, _, rest = to_client.take().partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 405")
    assert statuses(rest) == [200]


def test_models_are_those_that_the_key_reaches(world: World) -> None:
    world.apply(deployment("m"), deployment("other"), deployment("closed", open=False))
    world.add_key("narrow", scopes=Scopes(deployments=("other", "closed")))
    client, to_client = world.client()
    client.data_received(get("/v1/models"))
    client.data_received(get("/v1/models", secret="narrow"))
    client.data_received(get("/v1/models/m", secret="narrow"))
    client.data_received(get("/v1/models/closed", secret="narrow"))
    client.data_received(get("/v1/models/other", secret="narrow"))
    found = split_responses(to_client.take())
    assert [status for status, _, _ in found] == [200, 200, 404, 404, 200]
    assert found[0][2].count(b'"id"') == 2
    assert b'"id":"other"' in found[1][2]
    assert b'"id":"m"' not in found[1][2]


@pytest.mark.parametrize("path", ["/v1/models/org%2Fmodel", "/v1/models/org/model"])
def test_a_models_name_may_hold_a_slash(world: World, path: str) -> None:
    world.apply(deployment("org/model"))
    client, to_client = world.client()
    client.data_received(get(path))
    assert statuses(to_client.take()) == [200]


def test_ready_while_a_deployment_is_open_and_the_gateway_stays(world: World) -> None:
    client, to_client = world.client()
    client.data_received(get("/ready"))
    world.apply(deployment(open=False))
    client.data_received(get("/ready") + get("/health"))
    assert statuses(to_client.take()) == [200, 503, 200]


# The head.


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\x00b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\nhost: a\n\n", 400),
        (b"GET /health HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"hello\r\n\r\n", 400),
        (b"CONNECT other:80 HTTP/1.1\r\nhost: other:80\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nmore", 400),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 3000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 30 + b"\r\n", 431),
        (post(chat(), "content-encoding: gzip"), 415),
        (post(chat(), "transfer-encoding: chunked"), 400),
        (post(chat()).replace(b"content-length: ", b"transfer-encoding: gzip, chunked\r\nx: "), 400),
        (post(chat(), "content-length: 5"), 400),
        (post(chat(), f"authorization: Bearer {SECRET}"), 401),
        (post(b"x" * 5000), 413),
        (post(chat()).replace(b"content-length: ", b"content-length: -"), 400),
        (post(chat()).replace(b"content-length: ", b"content-length: 9999999999999999999999"), 400),
    ],
)
def test_a_head_that_is_not_plain_is_refused_and_ends_the_connection(
    small: World, request_bytes: bytes, status: int
) -> None:
    client, to_client = small.client()
    client.data_received(request_bytes)
    assert statuses(to_client.take()) == [status]
    assert to_client.ended or to_client.closed
    client.data_received(get("/health"))
    assert to_client.take() == b"", "what follows is not read"


def test_a_field_that_never_ends_is_not_held_for_long(small: World) -> None:
    client, to_client = small.client()
    client.data_received(b"GET /health HTTP/1.1\r\nhost: a\r\nx: ")
    for _ in range(5):
        client.data_received(b"y" * 1000)
    assert statuses(to_client.take()) == [431]


def test_chunk_extensions_and_trailers_that_never_end_are_not_read_for_long(small: World) -> None:
    for tail in (b"5;", b"5\r\nhello\r\n0\r\nx: "):
        client, to_client = small.client()
        client.data_received(post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"") + tail)
        for _ in range(5):
            client.data_received(b"y" * 1000)
        assert statuses(to_client.take()) == [431]


def test_the_key_is_checked_before_the_body_is_read(world: World) -> None:
    client, to_client = world.client()
    head = post(b"", secret="wrong").replace(b"content-length: 0", b"content-length: 5000000")
    client.data_received(head)
    [(status, headers, body)] = split_responses(to_client.take())
    assert (status, headers["www-authenticate"], headers["connection"]) == (401, "bearer", "close")
    assert b"invalid_api_key" in body
    assert to_client.ended
    assert not to_client.closed, "reads on for a moment, or the answer is lost with a reset"
    assert client.deadline < time.monotonic() + world.wire.linger_s + 1


def test_a_body_over_the_limit_is_refused_however_it_comes(small: World) -> None:
    client, to_client = small.client()
    client.data_received(post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b""))
    client.data_received(chunked(b"x" * 4000))
    assert to_client.take() == b""
    client.data_received(chunked(b"x" * 97))
    assert statuses(to_client.take()) == [413]
    assert [record.status for record in small.records()] == [413]


def test_a_body_of_exactly_the_limit_is_read(small: World) -> None:
    client, to_client = small.client()
    client.data_received(post(b"x" * 4096))
    assert b"not valid JSON" in to_client.take()


def test_continue_is_said_once_and_only_to_who_is_let_in(world: World) -> None:
    client, to_client = world.client()
    _, to_engine = world.engine()
    whole = post(chat(), "expect: 100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    client.data_received(head + b"\r\n\r\n")
    assert to_client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.data_received(body)
    assert to_client.take() == b""
    assert b'"model":"e"' in to_engine.take()
    stranger, to_stranger = world.client()
    stranger.data_received(post(chat(), "expect: 100-continue", secret="wrong").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert statuses(to_stranger.take()) == [401]


def test_http_1_0_is_answered_and_closed(world: World) -> None:
    client, to_client = world.client()
    client.data_received(b"GET /health HTTP/1.0\r\n\r\n")
    [(status, headers, _)] = split_responses(to_client.take())
    assert (status, headers["connection"]) == (200, "close")
    assert to_client.closed


# Deadlines.


def test_a_slow_head_and_a_slow_body_are_told_so(world: World) -> None:
    for part in (b"GET /health HT", post(chat())[:-5]):
        client, to_client = world.client()
        client.data_received(part)
        expire(world, client)
        assert statuses(to_client.take()) == [408]
        assert to_client.ended


def test_bytes_that_trickle_in_do_not_move_the_deadline(world: World) -> None:
    client, _ = world.client()
    client.data_received(b"GET /health HT")
    first = client.deadline
    client.data_received(b"TP/1.1\r\nx: ")
    client.data_received(b"y")
    assert client.deadline == first
    client, _ = world.client()
    client.data_received(post(chat())[:-5])
    first = client.deadline
    client.data_received(post(chat())[-5:-4])
    assert client.deadline == first


def test_an_idle_connection_is_closed_without_a_word(world: World) -> None:
    for said in (b"", get("/health")):
        client, to_client = world.client()
        if said:
            client.data_received(said)
            to_client.take()
        expire(world, client)
        assert to_client.aborted
        assert to_client.take() == b""


def test_a_client_that_does_not_read_its_answer_is_cut_off(world: World) -> None:
    client, to_client = world.client()
    engine, to_engine = world.engine()
    client.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    client.pause_writing()
    expire(world, client)
    assert to_client.aborted
    to_client.lose()
    assert to_engine.aborted
    assert [record.outcome for record in world.records()] == ["client_gone"]


def test_a_client_that_never_reads_small_answers_is_cut_off_too(world: World) -> None:
    client, to_client = world.client()
    client.pause_writing()
    client.data_received(get("/health") * 50)
    assert to_client.take() == b"", "not one answer more is made for who does not read"
    assert not to_client.reading
    expire(world, client)
    assert to_client.aborted


def test_answers_go_on_once_the_client_reads(world: World) -> None:
    client, to_client = world.client()
    client.pause_writing()
    client.data_received(get("/health") * 3)
    client.resume_writing()
    assert statuses(to_client.take()) == [200, 200, 200]
    assert to_client.reading


def test_the_last_answer_of_a_connection_has_a_deadline_as_well(world: World) -> None:
    client, to_client = world.client()
    client.data_received(get("/health", "connection: close"))
    assert to_client.closed
    expire(world, client)
    assert to_client.aborted


# Pipelining.


def test_pipelined_requests_are_answered_in_their_order(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat()) + get("/health") + post(chat(model="none")) + post(chat()) + get("/ready"))
    assert to_client.take() == b""
    assert not to_client.reading
    engine.data_received(answer("first"))
    engine.data_received(answer("second"))
    found = split_responses(to_client.take())
    assert [status for status, _, _ in found] == [200, 200, 404, 200, 200]
    assert b"first" in found[0][2]
    assert b"second" in found[3][2]
    assert to_client.reading


async def test_thousands_of_pipelined_requests_do_not_exhaust_the_stack(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat()) + get("/health") * 3000 + post(b"{") * 500)
    engine.data_received(answer())
    for _ in range(20):
        await asyncio.sleep(0)
    assert statuses(to_client.take()) == [200] * 3001 + [400] * 500


def test_garbage_behind_a_request_does_not_take_its_answer_away(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat()) + b"\x00\x01garbage")
    engine.data_received(answer())
    [(status, headers, _)] = split_responses(to_client.take())
    assert (status, headers["connection"]) == (200, "close")
    assert to_client.closed or to_client.ended


def test_a_refused_request_behind_another_waits_for_its_turn(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat()) + post(chat(), secret="wrong"))
    engine.data_received(answer())
    assert statuses(to_client.take()) == [200, 401]


# The memory of the last head.


def ask(world: World, client: ClientConnection, to_client: object, request: bytes) -> tuple[int, bytes]:
    """One request answered by an engine, if it comes so far; what the engine was asked."""
    engine, to_engine = world.engine()
    client.data_received(request)
    asked = to_engine.take()
    if asked:
        engine.data_received(answer())
    else:
        world.worker.admissions["m"].seats["r0"].pool.idle.clear()
    [(status, _, _)] = split_responses(to_client.take())  # type: ignore[attr-defined]
    return status, asked.partition(b"\r\n\r\n")[2]


def test_a_repeated_head_with_another_length_means_another_body(world: World) -> None:
    client, to_client = world.client()
    for text in ("a", "b", "a much longer text than before", "c" * 2000, ""):
        status, asked = ask(world, client, to_client, post(chat(messages=[{"role": "user", "content": text}])))
        assert status == 200
        assert f'"content":"{text}"'.encode() in asked
    assert [record.outcome for record in world.records()] == ["complete"] * 5


def test_a_repeated_head_is_only_trusted_when_the_read_is_the_request(world: World) -> None:
    client, to_client = world.client()
    engine, to_engine = world.engine()
    plain, other = post(chat(user="plain")), post(chat(user="other"))
    glued = [other + get("/health")]
    for reads in ([plain], [other[:50], other[50:]], [plain], [other[:-3], other[-3:]], [plain], glued, [plain]):
        for read in reads:
            client.data_received(read)
        assert (b'"user":"plain"' if reads == [plain] else b'"user":"other"') in to_engine.take()
        engine.data_received(answer())
        assert statuses(to_client.take()) == ([200, 200] if reads is glued else [200])


def test_a_revoked_key_is_refused_on_an_open_connection(world: World) -> None:
    client, to_client = world.client()
    assert ask(world, client, to_client, post(chat()))[0] == 200
    assert ask(world, client, to_client, post(chat()))[0] == 200
    world.worker.keyring.apply(KeyRevoked(id="0123456789ab", at=time.time()))
    assert ask(world, client, to_client, post(chat()))[0] == 401


def test_an_expired_key_is_refused_on_an_open_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    world.add_key("short", expires_at=now + 10)
    client, to_client = world.client()
    assert ask(world, client, to_client, post(chat(), secret="short"))[0] == 200
    monkeypatch.setattr(time, "time", lambda: now + 11)
    assert ask(world, client, to_client, post(chat(), secret="short"))[0] == 401


def test_another_key_on_the_same_connection_is_another_caller(world: World) -> None:
    other = world.add_key("another")
    client, to_client = world.client()
    for secret in (SECRET, "another", SECRET, "another"):
        assert ask(world, client, to_client, post(chat(), secret=secret))[0] == 200
    assert [record.key_id for record in world.records()] == ["0123456789ab", other] * 2


def test_a_pipelined_requests_head_is_not_mistaken_for_the_one_before_it(world: World) -> None:
    """Both come in one read, the first is answered at once: what is remembered must not mix the two."""
    world.add_key("narrow", scopes=Scopes(endpoints=("/v1/completions",)))
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(b"{", secret="narrow") + post(chat()))
    engine.data_received(answer())
    assert statuses(to_client.take()) == [400, 200]
    assert ask(world, client, to_client, post(chat(), secret="narrow"))[0] == 403


def test_a_chunked_body_is_read_to_its_end_every_time(world: World) -> None:
    client, to_client = world.client()
    engine, to_engine = world.engine()
    for text in ("one", "two"):
        body = chat(user=text)
        head = post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
        client.data_received(head + chunked(body[:20], body[20:]) + LAST_CHUNK)
        assert f'"user":"{text}"'.encode() in to_engine.take()
        engine.data_received(answer())
        assert statuses(to_client.take()) == [200]


async def test_a_body_larger_than_one_read_is_whole(world: World) -> None:
    client, to_client = world.client()
    engine, to_engine = world.engine()
    for letter in "ab":
        request = post(chat(user="u", messages=[{"role": "user", "content": letter * 900_000}]))
        for start in range(0, len(request), 262_144):
            client.data_received(request[start : start + 262_144])
        sent = b""
        while not sent:  # large bodies take turns
            await asyncio.sleep(0)
            sent = to_engine.take()
        assert letter.encode() * 900_000 in sent
        engine.data_received(answer())
        assert statuses(to_client.take()) == [200]


async def test_a_client_that_leaves_before_its_large_body_had_its_turn_is_recorded_once(world: World) -> None:
    client, _ = world.client()
    _engine, to_engine = world.engine()
    client.data_received(post(chat(messages=[{"role": "user", "content": "a" * 200_000}])))
    for _ in range(4):
        await asyncio.sleep(0)
        if client.exchange is not None:
            break
    client.connection_lost(None)
    for _ in range(8):
        await asyncio.sleep(0)
    assert to_engine.take() == b""
    assert [record.outcome for record in world.records()] == ["client_gone"]


async def test_a_client_that_leaves_while_its_large_body_is_read_is_recorded_once(world: World) -> None:
    client, _ = world.client()
    _engine, to_engine = world.engine()
    client.data_received(post(chat(messages=[{"role": "user", "content": "a" * 200_000}])))
    for _ in range(6):
        if client.exchange is not None:
            break
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    client.connection_lost(None)
    for _ in range(8):
        await asyncio.sleep(0)
    assert to_engine.take() == b""
    assert [record.outcome for record in world.records()] == ["client_gone"]


async def test_a_large_body_that_is_no_json_is_refused_and_the_connection_serves_on(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(b'{"model":"m"' + b" " * 200_000))
    for _ in range(8):
        await asyncio.sleep(0)
    assert statuses(to_client.take()) == [400]
    client.data_received(post(chat()))
    engine.data_received(answer())
    assert statuses(to_client.take()) == [200]
    assert [record.outcome for record in world.records()] == ["refused", "complete"]


# The end.


async def test_draining_lets_streams_end_and_starts_nothing_new(world: World) -> None:
    idle, to_idle = world.client()
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    world.worker.draining = True
    for connection in (idle, client):
        connection.close()
    assert to_idle.closed
    assert not to_client.closed
    engine.data_received(chunked(DONE) + LAST_CHUNK)
    assert to_client.closed
    assert [record.outcome for record in world.records()] == ["complete"]


def test_who_is_still_served_when_the_grace_is_over_is_told(world: World) -> None:
    streaming, to_streaming = world.client()
    waiting, to_waiting = world.client()
    engine, to_engine = world.engine()
    streaming.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    _, to_other = world.engine()
    waiting.data_received(post(chat()))
    for connection in (streaming, waiting):
        connection.stop()
    [(_, _, body)] = split_responses(to_streaming.take())
    assert b'"code":"gateway_stopped"' in body
    assert b"[DONE]" not in body
    assert statuses(to_waiting.take()) == [503]
    assert to_engine.aborted
    assert to_other.aborted
    assert [record.outcome for record in world.records()] == ["gateway_stopped"] * 2


def test_sequence_numbers_stand_without_gaps_whatever_was_refused(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    for _ in range(5):
        client.data_received(get("/nothing") + get("/v1/models", secret="wrong") + get("/v1/models"))
    client.data_received(post(chat()))
    engine.data_received(answer())
    assert len(split_responses(to_client.take())) == 16
    assert [record.sequence for record in world.records()] == [1, 2, 3, 4, 5, 6]
    assert len({record.request_id for record in world.records()}) == 6


# Reads that are much work.


async def test_a_read_of_tiny_chunks_is_parsed_piece_by_piece_and_nothing_is_lost(world: World) -> None:
    client, to_client = world.client()
    engine, to_engine = world.engine()
    sent = chat(user="u", messages=[{"role": "user", "content": "x" * 40_000}])
    head = post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    read = head + chunked(*[sent[at : at + 1] for at in range(len(sent))]) + LAST_CHUNK
    assert len(read) > 200_000
    # Behind it stands another request, which must wait for its turn.
    client.data_received(read + post(chat(user="second")))
    assert not to_client.reading
    for _ in range(20):
        await asyncio.sleep(0)
    assert b"x" * 40_000 in to_engine.take()
    engine.data_received(answer())
    assert b'"second"' in to_engine.take()
    engine.data_received(answer())
    assert statuses(to_client.take()) == [200, 200]
    assert to_client.reading


async def test_what_comes_while_pieces_wait_is_parsed_after_them(world: World) -> None:
    client, to_client = world.client()
    _engine, to_engine = world.engine()
    sent = chat(user="u", messages=[{"role": "user", "content": "x" * 40_000}])
    head = post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    read = head + chunked(*[sent[at : at + 1] for at in range(len(sent))]) + LAST_CHUNK
    client.data_received(read[:150_000])
    client.data_received(read[150_000:])
    for _ in range(20):
        await asyncio.sleep(0)
    assert b"x" * 40_000 in to_engine.take()
    assert to_client.reading


async def test_a_client_that_leaves_while_pieces_wait_leaves_nothing_behind(world: World) -> None:
    client, to_client = world.client()
    head = post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    client.data_received(head + chunked(*[b"x"] * 40_000))
    to_client.lose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.records() == []


async def test_behind_a_refusal_in_the_middle_of_pieces_what_comes_is_read_and_thrown_away(small: World) -> None:
    client, to_client = small.client()
    head = post(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    client.data_received(head + chunked(*[b"x" * 16_384] * 64))
    for _ in range(5):
        await asyncio.sleep(0)
    assert statuses(to_client.take()) == [413]
    assert to_client.reading, "else the end of the connection would take the answer with it"


def test_after_pipelined_requests_the_connection_is_read_again(world: World) -> None:
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat(user="first")) + post(chat(user="second")))
    assert not to_client.reading
    engine.data_received(answer())
    engine.data_received(answer())
    assert statuses(to_client.take()) == [200, 200]
    assert to_client.reading
