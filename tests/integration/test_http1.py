"""The small HTTP/1.1 server of the foreign programs, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from programs import load_program

http1 = load_program("http1")

Handler = Callable[[Any, Any], Awaitable[None]]
Eventually = Callable[..., Awaitable[object]]


@asynccontextmanager
async def serving(handler: Handler, path: Path) -> AsyncIterator[str]:
    server = await http1.listen(handler, f"unix:{path}")
    try:
        yield str(path)
    finally:
        server.close()


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    return int(lines[0].split()[1]), headers, body


async def ask(path: str, data: bytes) -> tuple[int, dict[str, str], bytes]:
    async with connected(path) as (reader, writer):
        writer.write(data)
        return await read_reply(reader)


def request(body: bytes = b"", path: str = "/x", extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


async def echo(request: Any, reply: Any) -> None:
    reply.json(200, {"method": request.method, "path": request.path, "query": request.query, "n": len(request.body)})


async def test_requests_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "s") as path, connected(path) as (reader, writer):
        writer.write(request(b"abc", "/a?b=c") + request(b"", "/second"))
        assert json.loads((await read_reply(reader))[2]) == {"method": "POST", "path": "/a", "query": "b=c", "n": 3}
        assert json.loads((await read_reply(reader))[2])["path"] == "/second"


async def test_a_body_in_many_pieces_is_whole(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "s") as path, connected(path) as (reader, writer):
        for byte in request(b"0123456789"):
            writer.write(bytes((byte,)))
            await writer.drain()
        assert json.loads((await read_reply(reader))[2])["n"] == 10


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : e\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 17000, 431),
    ],
)
async def test_a_head_that_cannot_be_trusted_is_refused_and_the_connection_closed(
    tmp_path: Path, data: bytes, status: int
) -> None:
    async with serving(echo, tmp_path / "s") as path, connected(path) as (reader, writer):
        writer.write(data)
        code, headers, body = await read_reply(reader)
        assert (code, headers["connection"]) == (status, "close")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert await reader.read() == b""


async def test_a_stream_arrives_chunk_by_chunk(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def stream(request: Any, reply: Any) -> None:
        reply.start()
        await reply.send(b"first")
        await go_on.wait()
        reply.push(b"second")
        reply.finish()

    async with serving(stream, tmp_path / "s") as path, connected(path) as (reader, writer):
        writer.write(request() + request())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(10) == b"5\r\nfirst\r\n"
        go_on.set()
        assert await reader.readexactly(16) == b"6\r\nsecond\r\n0\r\n\r\n"
        assert (await read_reply(reader))[2] == b"firstsecond"


async def test_the_handler_is_cancelled_when_the_client_leaves(tmp_path: Path, eventually: Eventually) -> None:
    seen: list[str] = []

    async def wait(request: Any, reply: Any) -> None:
        seen.append("began")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with serving(wait, tmp_path / "s") as path:
        async with connected(path) as (_, writer):
            writer.write(request())
            await eventually(lambda: seen == ["began"])
        await eventually(lambda: seen == ["began", "cancelled"])


async def test_a_refusal_keeps_the_connection_and_its_headers(tmp_path: Path) -> None:
    async def refuse(request: Any, reply: Any) -> None:
        raise http1.BadRequest("full", status=503, param="p", code="c", retry_after_s=7)

    async with serving(refuse, tmp_path / "s") as path, connected(path) as (reader, writer):
        for _ in range(2):
            writer.write(request())
            status, headers, body = await read_reply(reader)
            assert (status, headers["retry-after"]) == (503, "7")
            error = {"message": "full", "type": "server_error", "param": "p", "code": "c"}
            assert json.loads(body) == {"error": error}


async def test_a_fault_in_a_handler_is_a_500_that_tells_the_client_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(request: Any, reply: Any) -> None:
        raise KeyError("secret")

    async with serving(fail, tmp_path / "s") as path:
        status, _, body = await ask(path, request())
    assert status == 500
    assert b"secret" not in body
    assert capsys.readouterr().out.startswith("error: POST /x: KeyError")


async def test_a_fault_after_the_first_chunk_never_looks_like_a_whole_answer(tmp_path: Path) -> None:
    async def half(request: Any, reply: Any) -> None:
        reply.start()
        reply.push(b"half")
        raise http1.BadRequest("gone", status=503)

    async with serving(half, tmp_path / "s") as path, connected(path) as (reader, writer):
        writer.write(request())
        received = await reader.read()
    assert received.endswith(b"4\r\nhalf\r\n")


async def test_send_waits_for_a_slow_reader(tmp_path: Path, eventually: Eventually) -> None:
    sent: list[int] = []

    async def flood(request: Any, reply: Any) -> None:
        reply.start()
        for number in range(200):
            await reply.send(b"x" * 65536)
            sent.append(number)
        reply.finish()

    async with serving(flood, tmp_path / "s") as path, connected(path) as (reader, writer):
        writer.write(request())
        await eventually(lambda: sent)
        await asyncio.sleep(0)
        before = len(sent)
        assert before < 200
        assert len((await read_reply(reader))[2]) == 200 * 65536
        await eventually(lambda: len(sent) == 200)


async def test_a_client_that_floods_behind_a_served_request_is_cut_off(tmp_path: Path, eventually: Eventually) -> None:
    ended = asyncio.Event()

    async def wait(request: Any, reply: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(wait, tmp_path / "s") as path, connected(path) as (_, writer):
        writer.write(request())
        try:
            for _ in range(20):
                writer.write(b"x" * (1 << 20))
                await writer.drain()
        except ConnectionError:
            pass
        await eventually(ended.is_set)


async def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    async with serving(echo, tmp_path / "s") as path:
        assert (await ask(path, request()))[0] == 200


async def test_http_1_0_and_connection_close_end_the_connection(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "s") as path:
        for data in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"):
            async with connected(path) as (reader, writer):
                writer.write(data)
                assert (await read_reply(reader))[0] == 200
                assert await reader.read() == b""


def test_an_event_holds_no_raw_line_break() -> None:
    assert http1.sse({"a": "1\n2\r\n漢"}) == 'data: {"a":"1\\n2\\r\\n漢"}\n\n'.encode()
