"""Streams through the whole data plane, byte by byte, however the engine's bytes fall into reads."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from gateway_fakes import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    USAGE_EVENT,
    World,
    answer,
    chat,
    chunked,
    event,
    post,
    split_responses,
)
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gateway.lanes import BrokenStream, usage_of

EVENTS = [event(f"word{index}") for index in range(6)]
# It says things that hold for an announcement and not for the answer.
EARLY_HEAD = b"HTTP/1.1 103 Early Hints\r\ncontent-type: text/html\r\nretry-after: 9\r\n\r\n"


def relay(world: World, reads: list[bytes], *, ask_usage: bool = False, version: str = "1.1") -> bytes:
    """What a client that asked for a stream gets when the engine's bytes come in these reads."""
    client, to_client = world.client()
    engine, _ = world.engine()
    options = {"stream_options": {"include_usage": True}} if ask_usage else {}
    request = post(chat(stream=True, **options)).replace(b"HTTP/1.1", b"HTTP/" + version.encode(), 1)
    client.data_received(request)
    for read in reads:
        engine.data_received(read)
    return to_client.take()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(marks)]


# An engine may put several events into a chunk, an event into several chunks, and its own line ends everywhere.
pieces = st.lists(
    st.one_of(
        st.sampled_from(EVENTS),
        st.just(b": ping\n\n"),
        st.just(b'data: {"choices":[{"delta":{}}],"usage":null}\n\n'),
        st.just(b'data: {"choices":[{"delta":{"content":"the word \\"usage\\": 5"}}]}\n\n'),
    ),
    min_size=1,
    max_size=8,
)


@given(
    events=pieces,
    with_usage=st.booleans(),
    ask_usage=st.booleans(),
    crlf=st.booleans(),
    chunk_cuts=st.lists(st.integers(0, 10_000), max_size=6),
    read_cuts=st.lists(st.integers(0, 10_000), max_size=12),
    each_event_a_chunk=st.booleans(),
    early_heads=st.integers(0, 8),
)
def test_any_split_into_chunks_and_reads_gives_the_client_the_same_events(
    events: list[bytes],
    with_usage: bool,
    ask_usage: bool,
    crlf: bool,
    chunk_cuts: list[int],
    read_cuts: list[int],
    each_event_a_chunk: bool,
    early_heads: int,
) -> None:
    said = [*events, *([USAGE_EVENT] if with_usage else []), DONE]
    wanted = b"".join(one for one in said if ask_usage or one != USAGE_EVENT)
    body = b"".join(said)
    if crlf:
        said, body = [one.replace(b"\n", b"\r\n") for one in said], body.replace(b"\n", b"\r\n")
    in_chunks = said if each_event_a_chunk else cut(body, chunk_cuts)
    bytes_of_engine = EARLY_HEAD * early_heads + STREAM_HEAD + chunked(*in_chunks) + LAST_CHUNK
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        received = relay(world, cut(bytes_of_engine, read_cuts), ask_usage=ask_usage)
        [(status, headers, got)] = split_responses(received)
        [record] = world.records()
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert got.replace(b"\r\n", b"\n") == wanted
    assert (record.outcome, record.usage_source) == ("complete", "engine" if with_usage else "estimated")
    if with_usage:
        assert (record.prompt_tokens, record.completion_tokens) == (5, 7)


@given(
    events=pieces,
    read_cuts=st.lists(st.integers(0, 10_000), max_size=12),
    end=st.integers(0, 10_000),
    version=st.sampled_from(["1.0", "1.1"]),
)
def test_a_stream_cut_anywhere_is_complete_only_where_the_engine_had_said_all_of_it(
    events: list[bytes], read_cuts: list[int], end: int, version: str
) -> None:
    whole = STREAM_HEAD + chunked(*events, DONE) + LAST_CHUNK
    kept = whole[: end % len(whole)]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        client, to_client = world.client()
        engine, to_engine = world.engine()
        client.data_received(post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/" + version.encode(), 1))
        for read in cut(kept, read_cuts):
            engine.data_received(read)
        to_engine.lose()
        received = to_client.take()
        [record] = world.records()
    if DONE in kept:
        # Nothing but framing is missing, and the client has the [DONE] already.
        assert record.outcome == "complete"
        body = received.partition(b"\r\n\r\n")[2] if version == "1.0" else split_responses(received)[0][2]
        assert body == b"".join([*events, DONE])
        assert to_engine.aborted or to_engine.closed
        return
    assert to_client.closed or b"HTTP/1.1 503" in received
    assert record.outcome in ("truncated", "upstream_failed")
    if record.outcome == "truncated":
        body = received.partition(b"\r\n\r\n")[2] if version == "1.0" else split_responses(received)[0][2]
        assert body.rstrip().rpartition(b"\n\n")[2].startswith(b'data: {"error":')


def test_whole_events_in_whole_chunks_pass_untouched(tmp_path: Path) -> None:
    # The sizes are written with capitals, which is legal and not how we would write them.
    odd = event("x" * 120)
    raw = b"%X\r\n%b\r\n" % (len(odd), odd)
    assert raw != chunked(odd)
    received = relay(World(tmp_path), [STREAM_HEAD, raw, raw + raw, raw, chunked(DONE) + LAST_CHUNK])
    assert received.partition(b"\r\n\r\n")[2] == raw * 4 + chunked(DONE) + LAST_CHUNK


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("reads", [1, 2])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_what_some_clients_take_for_a_lines_end_is_escaped(tmp_path: Path, end: str, reads: int, version: str) -> None:
    odd = b'data: {"choices":[{"delta":{"content":"a%bb"}}]}\n\n' % end.encode()
    both = [chunked(event("é")), chunked(odd)]
    received = relay(
        World(tmp_path),
        [STREAM_HEAD, chunked(event("a")), *(both if reads == 2 else [b"".join(both)]), chunked(DONE) + LAST_CHUNK],
        version=version,
    )
    said = odd.replace(end.encode(), f"\\u{ord(end):04x}".encode())
    assert event("é") in received
    assert said in received
    assert json.loads(said[5:])["choices"][0]["delta"]["content"] == f"a{end}b"
    assert end.encode() not in received


@pytest.mark.parametrize("size", [b"0x4d", b"+4d", b"4_d", b" 4d", b"4d "])
def test_a_chunk_size_written_oddly_never_reaches_the_client_as_it_is(tmp_path: Path, size: bytes) -> None:
    odd = event("x" * (0x4D - len(event(""))))
    assert len(odd) == 0x4D
    received = relay(World(tmp_path), [STREAM_HEAD, chunked(event("a")), size + b"\r\n" + odd + b"\r\n"])
    assert size + b"\r\n" not in received.replace(b"x" * 8, b"")


def test_a_stream_without_the_end_marker_is_not_complete(tmp_path: Path) -> None:
    world = World(tmp_path)
    received = relay(world, [STREAM_HEAD, chunked(event("a")), LAST_CHUNK])
    [(_, _, body)] = split_responses(received)
    assert b"[DONE]" not in body
    assert b'"code":"truncated"' in body
    assert [record.outcome for record in world.records()] == ["truncated"]


@pytest.mark.parametrize("half", [event("word")[:-9] + b"\n\n", b'data:{"choices":[{"delta":{"content":"wo\n\n'])
@pytest.mark.parametrize("in_one_read", [True, False])
def test_an_event_that_ends_in_the_middle_never_reaches_the_client(
    tmp_path: Path, half: bytes, in_one_read: bool
) -> None:
    world = World(tmp_path)
    reads = [STREAM_HEAD, chunked(event("a")), chunked(half), chunked(event("b")), chunked(DONE) + LAST_CHUNK]
    received = relay(world, [b"".join(reads)] if in_one_read else reads)
    assert half not in received and b"[DONE]" not in received
    assert [record.outcome for record in world.records()] == ["upstream_failed" if in_one_read else "truncated"]


def test_a_plain_answer_after_early_heads_is_the_answer(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(3):
        client, to_client = world.client()
        engine, _ = world.engine()
        client.data_received(post(chat()))
        engine.data_received(EARLY_HEAD * number + answer())
        [(status, headers, body)] = split_responses(to_client.take())
        assert (status, headers["content-type"]) == (200, "application/json")
        assert body == answer().partition(b"\r\n\r\n")[2]


ERROR_EVENT = b'data: {"error":{"message":"EngineCore encountered an issue","type":"InternalServerError"}}\n\n'


@pytest.mark.parametrize("said", [(ERROR_EVENT, DONE), (ERROR_EVENT,)], ids=["and then [DONE]", "and nothing more"])
@pytest.mark.parametrize("together", [True, False], ids=["in one chunk", "a chunk each"])
def test_an_error_that_an_engine_reports_in_its_stream_is_never_a_complete_answer(
    tmp_path: Path, said: tuple[bytes, ...], together: bool
) -> None:
    world = World(tmp_path)
    chunks = [b"".join(said)] if together else list(said)
    received = relay(world, [STREAM_HEAD + chunked(EVENTS[0]), chunked(*chunks) + LAST_CHUNK])
    [(status, _, got)] = split_responses(received)
    [record] = world.records()
    assert status == 200 and got.startswith(EVENTS[0])
    assert b"[DONE]" not in got and b'"code":"truncated"' in got
    assert (record.outcome, record.error) == ("truncated", "the engine reported an error in the middle of its answer")


def test_an_error_before_the_first_token_is_a_plain_error(tmp_path: Path) -> None:
    world = World(tmp_path)
    [(status, headers, _)] = split_responses(relay(world, [STREAM_HEAD + chunked(ERROR_EVENT, DONE) + LAST_CHUNK]))
    assert status == 503 and int(headers["retry-after"]) > 0
    assert world.records()[0].outcome == "upstream_failed"


@pytest.mark.parametrize(
    "harmless",
    [
        b'data: {"error":null,"choices":[{"delta":{"content":"a"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"say {\\"error\\": 1}"}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"error":"x"}]}}]}\n\n',
    ],
)
def test_what_only_looks_like_an_error_passes(tmp_path: Path, harmless: bytes) -> None:
    world = World(tmp_path)
    [(status, _, got)] = split_responses(relay(world, [STREAM_HEAD + chunked(harmless, DONE) + LAST_CHUNK]))
    assert (status, got) == (200, harmless + DONE)
    assert world.records()[0].outcome == "complete"


def test_a_client_of_http_1_0_gets_events_without_chunks_and_the_end_of_the_connection(tmp_path: Path) -> None:
    world = World(tmp_path)
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    engine.data_received(STREAM_HEAD + chunked(event("a"), DONE) + LAST_CHUNK)
    head, _, body = to_client.take().partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == event("a") + DONE
    assert to_client.closed


def test_the_engine_is_always_asked_for_usage(tmp_path: Path) -> None:
    world = World(tmp_path)
    client, _ = world.client()
    _, to_engine = world.engine()
    client.data_received(post(chat(stream=True)))
    assert b'"stream_options":{"include_usage":true}' in to_engine.take()


def test_an_event_without_end_is_given_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    endless = [chunked(b"data: " + b"x" * 1_000_000) for _ in range(6)]
    relay(world, [STREAM_HEAD, chunked(event("a")), *endless])
    [record] = world.records()
    assert (record.outcome, record.error) == ("truncated", "an event of the engine has no end")


def test_a_slow_client_holds_its_engine_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    client, _ = world.client()
    engine, to_engine = world.engine()
    client.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    client.pause_writing()
    assert not to_engine.reading
    client.resume_writing()
    assert to_engine.reading


def test_an_engines_connection_that_was_held_back_reads_again_for_the_next(tmp_path: Path) -> None:
    world = World(tmp_path)
    client, _ = world.client()
    engine, to_engine = world.engine()
    client.data_received(post(chat(stream=True)))
    engine.data_received(STREAM_HEAD + chunked(event("a")))
    client.pause_writing()
    engine.data_received(chunked(DONE) + LAST_CHUNK)
    assert to_engine.reading
    assert world.worker.admissions["m"].seats["r0"].pool.idle == [engine]


@pytest.mark.parametrize(
    "response",
    [
        EARLY_HEAD * 9,
        EARLY_HEAD * 9 + answer(),
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"not http at all\r\n\r\n",
        answer() + answer(),
        answer() + b"garbage",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n{{{",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    ],
)
def test_an_engine_that_does_not_speak_properly_is_unavailable(tmp_path: Path, response: bytes) -> None:
    world = World(tmp_path)
    client, to_client = world.client()
    engine, to_engine = world.engine()
    client.data_received(post(chat()))
    engine.data_received(response)
    [(status, headers, _)] = split_responses(to_client.take())
    assert (status, headers["retry-after"]) == (503, "2")
    assert to_engine.aborted
    assert [record.outcome for record in world.records()] == ["upstream_failed"]


def test_bytes_on_an_idle_engine_connection_end_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    engine, to_engine = world.engine()
    engine.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert to_engine.aborted
    assert not engine.usable


@pytest.mark.parametrize(
    ("status", "body", "told", "words"),
    [
        (400, b'{"error":{"message":"too long","param":"messages","code":"context"}}', 400, "too long"),
        (400, b'{"message":"plain"}', 400, "plain"),
        (400, b"\xff", 400, "refused"),
        (404, b'{"error":"gone"}', 404, "gone"),
        (401, b'{"error":"key sk-secret"}', 502, "failed with status 401"),
        (500, b'{"error":"Traceback: /home/x"}', 502, "failed with status 500"),
        (503, b"busy", 503, "overloaded"),
        (429, b"busy", 503, "overloaded"),
    ],
)
def test_what_an_engine_refuses_is_told_and_what_it_fails_at_is_named(
    tmp_path: Path, status: int, body: bytes, told: int, words: str
) -> None:
    world = World(tmp_path)
    client, to_client = world.client()
    engine, _ = world.engine()
    client.data_received(post(chat()))
    engine.data_received(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
    [(got, headers, text)] = split_responses(to_client.take())
    assert got == told
    assert words in text.decode()
    assert b"Traceback" not in text
    assert b"sk-secret" not in text
    assert (got != 503) or headers["retry-after"] == "2"


@pytest.mark.parametrize("answer", [b"[1]", b'"x"', b"", b"{", b"\xff", b'{"usage":5}', b"[" * 100_000])
def test_an_answer_that_is_no_object_is_a_broken_one(answer: bytes) -> None:
    with pytest.raises(BrokenStream):
        usage_of(answer)


def test_every_pair_of_cuts_near_the_ends_of_chunks_gives_the_same_events(tmp_path: Path) -> None:
    """A read that ends inside a chunk's head leaves the next one unaligned, however well that one ends."""
    said = [EVENTS[0], EVENTS[1], USAGE_EVENT, DONE]
    whole = STREAM_HEAD + chunked(*said) + LAST_CHUNK
    ends = [len(STREAM_HEAD) + len(chunked(*said[:count])) for count in range(len(said) + 1)]
    near = sorted({end + step for end in ends for step in range(-4, 5)})
    world = World(tmp_path)
    for first in near:
        for second in near:
            received = relay(world, cut(whole, [first, second]))
            [(_, _, body)] = split_responses(received)
            assert body == EVENTS[0] + EVENTS[1] + DONE, (first, second)
            world.worker.admissions["m"].seats["r0"].pool.close()
            world.worker.admissions["m"].seats["r0"].pool.closed = False


async def test_a_used_connection_that_dies_after_its_first_byte_is_not_retried(tmp_path: Path) -> None:
    world = World(tmp_path)
    client, to_client = world.client()
    engine, to_engine = world.engine()
    client.data_received(post(chat()))
    engine.data_received(answer())
    client.data_received(post(chat()))
    to_client.take()
    engine.data_received(b"HTTP/1.1 200")
    to_engine.lose()
    [(status, _, _)] = split_responses(to_client.take())
    assert status == 503
    assert [record.attempts for record in world.records()] == [1, 1]
