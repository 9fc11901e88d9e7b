"""How a FaultProxy asks the engine behind it: one connection per request, the answer in the engine's own pieces.
Standard library only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from http1 import Request

_NOT_HANDED_ON = frozenset(("connection", "content-length", "transfer-encoding", "keep-alive"))
_READ_BYTES = 65_536


class NoAnswer(Exception):
    """The engine takes no connection, or its answer ends early; the text says which."""


@dataclass(frozen=True)
class Answer:
    """`pieces` are chunks as the engine made them, or reads of a plain body; `is_chunked` says which."""

    status_line: bytes
    headers: dict[str, str]
    is_chunked: bool
    pieces: AsyncGenerator[bytes]

    def head(self, *more: str) -> bytes:
        """Status line and headers without those that say how long the body is."""
        lines = [f"{name}: {value}" for name, value in self.headers.items() if name not in _NOT_HANDED_ON]
        return b"\r\n".join([self.status_line, *(line.encode("latin-1") for line in (*lines, *more)), b"", b""])

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


@asynccontextmanager
async def asked(address: str, request: Request) -> AsyncGenerator[Answer]:
    """The engine's answer. Leaving the block closes the connection: an engine stops when the client has gone."""
    try:
        if address.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        else:
            host, _, port = address.removeprefix("http://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise NoAnswer(f"no connection to {address}: {error}") from None
    try:
        writer.write(_request_bytes(request))
        yield await _answer(reader)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise NoAnswer(f"the engine ended its answer: {error}") from None
    finally:
        writer.transport.abort()


def _request_bytes(request: Request) -> bytes:
    target = f"{request.path}?{request.query}" if request.query else request.path
    lines = [f"{request.method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items() if name not in ("connection", "keep-alive")]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + request.body


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    status_line, *lines = head.split(b"\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status_line, headers, True, _chunks(reader))
    return Answer(status_line, headers, False, _plain(reader, int(headers.get("content-length", 0))))


async def _chunks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


async def _plain(reader: asyncio.StreamReader, size: int) -> AsyncGenerator[bytes]:
    while size:
        data = await reader.read(min(size, _READ_BYTES))
        if not data:
            raise asyncio.IncompleteReadError(data, size)
        size -= len(data)
        yield data
