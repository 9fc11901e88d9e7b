"""What a FaultProxy does to answers, seen by a client that reads bytes; and that it does nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from modelyard.errors import EngineFailed
from modelyard.testing import FakeEngine, Fault, FaultProxy
from modelyard.testing.fault_plan import MIB

TOKENS = 6


@dataclass(frozen=True)
class Raw:
    """All that came, whether it ended in a reset, and whether the other side closed."""

    data: bytes
    closed: bool
    was_reset: bool

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


@pytest.fixture
async def engine() -> AsyncGenerator[FakeEngine]:
    async with FakeEngine(stem="é🙂") as engine:
        yield engine


@pytest.fixture
async def proxy(engine: FakeEngine) -> AsyncGenerator[FaultProxy]:
    async with FaultProxy(engine.address) as proxy:
        yield proxy


def question(*, stream: bool, content: str = "hello") -> bytes:
    message = {"role": "user", "content": content}
    value = {"model": "fake", "messages": [message], "max_tokens": TOKENS, "stream": stream}
    body = json.dumps(value).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def fetched(address: str, *, stream: bool, content: str = "hello") -> Raw:
    """Everything until the other side closes, or has been silent for a while after sending something."""
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    data, closed, was_reset = bytearray(), False, False
    try:
        writer.write(question(stream=stream, content=content))
        while True:
            async with asyncio.timeout(0.12 if data else 10.0):
                more = await reader.read(1 << 20)
            data += more
            if not more:
                closed = True
                break
    except TimeoutError:
        pass
    except ConnectionResetError:
        closed = was_reset = True
    finally:
        writer.transport.abort()
    return Raw(bytes(data), closed, was_reset)


def normal(raw: bytes) -> bytes:
    """Ids and times differ from answer to answer."""
    return b"\n".join(sorted(raw.partition(b"\r\n\r\n")[0].split(b"\r\n")))


def text_of(body: bytes) -> str:
    events = [line[6:] for line in dechunked(body).split(b"\n") if line.startswith(b"data: {")]
    choices = [json.loads(event)["choices"] for event in events]
    return "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)


def dechunked(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return found


EXPECTED = " ".join(f"é🙂{index}" for index in range(TOKENS))


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_plan_the_answer_is_the_engines(engine: FakeEngine, proxy: FaultProxy, stream: bool) -> None:
    direct, through = await fetched(engine.address, stream=stream), await fetched(proxy.address, stream=stream)
    assert normal(direct.data) == normal(through.data)
    # The engine counts its answers in their ids: a digit and nothing else.
    assert len(direct.data) == len(through.data)
    assert not through.closed


@pytest.mark.parametrize("kind", ["slices", "split-utf8", "latency", "bandwidth", "informational"])
async def test_a_harmless_fault_loses_nothing(proxy: FaultProxy, kind: str) -> None:
    await proxy.plan(Fault(kind=kind, bytes_per_s=40_000, delay_s=0.0005, count=5))
    raw = await fetched(proxy.address, stream=True)
    early, _, rest = raw.data.rpartition(b"HTTP/1.1 ")
    assert early.count(b"103 Early Hints") == (5 if kind == "informational" else 0)
    assert text_of(rest.partition(b"\r\n\r\n")[2]) == EXPECTED


async def test_characters_are_torn_between_two_chunks(proxy: FaultProxy) -> None:
    await proxy.plan(Fault(kind="split-utf8"))
    raw = await fetched(proxy.address, stream=True)
    pieces: list[bytes] = []
    body = raw.body
    while body:
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    assert sum(piece.endswith(b"\xc3") for piece in pieces) == TOKENS
    assert sum(piece.startswith(b"\x9f") for piece in pieces) == TOKENS


@pytest.mark.parametrize("listen", ["", "127.0.0.1:0"])
@pytest.mark.parametrize("at_byte", [0, 1, 40, 300])
async def test_bytes_end_where_the_plan_says(engine: FakeEngine, listen: str, at_byte: int) -> None:
    async with FaultProxy(engine.address, listen=listen) as proxy:
        await proxy.plan(Fault(kind="early-eof", at_byte=at_byte))
        raw = await fetched(proxy.address, stream=True)
        assert len(raw.data) == at_byte and raw.closed and not raw.was_reset
        await proxy.plan(Fault(kind="reset", at_byte=at_byte))
        raw = await fetched(proxy.address, stream=True)
        assert len(raw.data) <= at_byte and raw.closed
        # A unix socket has no reset: its end is all that can be seen.
        assert raw.was_reset == bool(listen)
        assert [one["bytes"] for one in await proxy.seen()] == [at_byte, at_byte]


@pytest.mark.parametrize(
    ("kind", "stream", "has"),
    [
        ("empty-200", False, b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"),
        ("empty-200", True, b"content-type: text/event-stream"),
        ("html-502", False, b"<h1>Bad Gateway</h1>"),
        ("redirect", True, b"location: http://127.0.0.1:9/"),
        ("bad-chunk", True, b"\r\nzz\r\n"),
        ("bad-chunk", False, b"\r\n\r\nzz\r\n"),
        ("bad-utf8", True, b"\xff"),
        ("bad-utf8", False, b"\xff"),
        ("long-line", True, b"x" * MIB),
        ("long-line", False, b"x" * MIB),
        ("extra-bytes", False, b"}xxxxxxxxxx"),
        ("extra-bytes", True, b"0\r\n\r\nxxxxxxxxxx"),
    ],
)
async def test_an_answer_is_spoilt_as_the_plan_says(proxy: FaultProxy, kind: str, stream: bool, has: bytes) -> None:
    await proxy.plan(Fault(kind=kind, size_bytes=MIB if kind == "long-line" else 0))
    assert has in (await fetched(proxy.address, stream=stream)).data


async def test_lengths_are_wrong_by_what_the_plan_says(proxy: FaultProxy) -> None:
    for kind, by in (("wrong-length", 7), ("short-length", -7)):
        await proxy.plan(Fault(kind=kind, size_bytes=7))
        raw = await fetched(proxy.address, stream=False)
        said = next(line for line in raw.head.split(b"\r\n") if line.startswith(b"content-length"))
        assert int(said.rpartition(b" ")[2]) == len(raw.body) + by
        assert raw.closed == (kind == "wrong-length")


async def test_bad_json_is_framed_well(proxy: FaultProxy) -> None:
    await proxy.plan(Fault(kind="bad-json"))
    plain = await fetched(proxy.address, stream=False)
    assert f"content-length: {len(plain.body)}".encode() in plain.head
    with pytest.raises(ValueError):
        json.loads(plain.body)
    body = dechunked((await fetched(proxy.address, stream=True)).body)
    assert body.endswith(b"data: [DONE]\n\n")
    with pytest.raises(ValueError):
        text_of(b"%x\r\n%b\r\n" % (len(body), body))


async def test_a_stream_can_end_without_its_last_event(proxy: FaultProxy) -> None:
    await proxy.plan(Fault(kind="no-done"))
    raw = await fetched(proxy.address, stream=True)
    assert raw.data.endswith(b"0\r\n\r\n") and b"[DONE]" not in raw.data and text_of(raw.body) == EXPECTED


async def test_the_engine_stops_when_the_client_has_gone(
    engine: FakeEngine, proxy: FaultProxy, eventually: Callable[..., Awaitable[object]]
) -> None:
    await engine.set(token_interval_s=30.0)
    reader, writer = await asyncio.open_unix_connection(proxy.address.removeprefix("unix:"))
    writer.write(question(stream=True))
    await reader.read(1)
    assert (await engine.seen())["counters"]["running"] == 1
    writer.transport.abort()

    async def is_free() -> bool:
        return (await engine.seen())["counters"]["running"] == 0

    await eventually(is_free)
    assert (await proxy.seen())[-1]["ended"] == "client left"


async def test_a_plan_chooses_its_requests(proxy: FaultProxy) -> None:
    await proxy.plan(
        Fault(kind="html-502", text="poison"), Fault(kind="empty-200", skip=1, times=2), Fault(kind="latency")
    )
    for content in ("a", "b", "poison", "c", "d"):
        await fetched(proxy.address, stream=False, content=content)
    assert [one["fault"] for one in await proxy.seen()] == ["latency", "empty-200", "html-502", "empty-200", "latency"]


async def test_a_dead_engine_is_no_answer(engine: FakeEngine, proxy: FaultProxy) -> None:
    engine.kill()
    await engine.ended()
    raw = await fetched(proxy.address, stream=False)
    assert raw.data == b"" and raw.closed
    assert (await proxy.seen())[-1]["ended"] == "no answer"


async def test_a_wrong_plan_is_refused_and_the_old_one_stays(proxy: FaultProxy) -> None:
    reply = await proxy.request("POST", "/fault/plan", {"faults": [{"kind": "rest"}]})
    assert "kind: one of none, latency" in reply["error"]["message"]
    assert (await fetched(proxy.address, stream=False)).body


async def test_it_says_why_it_does_not_start(engine: FakeEngine) -> None:
    with pytest.raises(EngineFailed, match="the FaultProxy is ended with 2"):
        async with FaultProxy(engine.address, listen="unix:/nowhere/at/all.sock"):
            pass
