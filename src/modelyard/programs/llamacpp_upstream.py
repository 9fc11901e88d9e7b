"""Speaking to llama-server over its private unix socket. A connection for each request: after a stream it closes its
end without saying so in the head, and a request on such a connection would be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

_MAX_HEAD_BYTES = 64 * 1024
_MAX_PLAIN_BYTES = 1024 * 1024
# Token lists and texts of the longest prompts.
MAX_TOKENS_BYTES = 64 * 1024 * 1024


class Lost(Exception):
    """llama-server could not be reached, or ended its answer before it was whole."""


@dataclass(frozen=True)
class Answer:
    """`status` is there, the body is still to be read, once."""

    status: int
    _chunked: bool
    _length: int
    _reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Lost where it is cut short."""
        try:
            if not self._chunked:
                yield await self._reader.readexactly(self._length)
                return
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Lost(f"its answer broke off: {type(error).__name__}") from error

    async def body(self, most_bytes: int = _MAX_PLAIN_BYTES) -> bytes:
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > most_bytes:
                raise Lost("its answer has no end")
        return bytes(whole)


@asynccontextmanager
async def ask(socket_path: str, method: str, target: str, body: bytes = b"") -> AsyncGenerator[Answer]:
    """One request. Leaving the block closes the connection at once: how llama-server learns that nobody waits."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path, limit=_MAX_HEAD_BYTES)
    except OSError as error:
        raise Lost(f"it does not listen: {error.strerror or error}") from error
    try:
        writer.write(
            f"{method} {target} HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        yield await _head(reader)
    finally:
        writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> Answer:
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(first.split(" ", 2)[1]), int(headers.get("content-length", "0"))
    except (OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Lost(f"no answer came: {type(error).__name__}") from error
    return Answer(status, headers.get("transfer-encoding") == "chunked", length, reader)
