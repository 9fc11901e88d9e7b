"""A client connection as light as Python allows: uvloop transport, httptools parser, no client library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools


class Connection(asyncio.Protocol):
    """Sends one request at a time; `when_done` is called with the connection once the response is whole, `when_lost`
    with a reason where that cannot happen any more. `pieces` holds what came of the body, each with its time."""

    def __init__(self, when_done: Callable[[Connection], None], when_lost: Callable[[str], None]) -> None:
        self.when_done, self.when_lost = when_done, when_lost
        self.pieces: list[tuple[float, bytes]] = []
        self.sent_at = 0.0
        self.busy = False
        self.tag = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.parser = httptools.HttpResponseParser(self)

    def send(self, request: bytes) -> None:
        self.pieces.clear()
        self.busy = True
        self.sent_at = perf_counter()
        self.transport.write(request)

    @property
    def status(self) -> int:
        return self.parser.get_status_code()

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.when_lost(f"not a HTTP response: {error}")
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self.pieces.append((perf_counter(), body))

    def on_message_complete(self) -> None:
        self.busy = False
        self.when_done(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.when_lost(f"the connection closed inside a response: {exc or 'end of file'}")

    @property
    def active_at(self) -> float:
        """When this connection last sent a request or received a part of a body."""
        return max(self.sent_at, self.pieces[-1][0] if self.pieces else 0.0)


async def connect(
    address: str, when_done: Callable[[Connection], None], when_lost: Callable[[str], None]
) -> Connection:
    """`address` is `unix:/path` or `http://host:port`."""
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return (await loop.create_unix_connection(lambda: Connection(when_done, when_lost), path))[1]
    host, _, port = urlsplit(address).netloc.rpartition(":")
    return (await loop.create_connection(lambda: Connection(when_done, when_lost), host, int(port)))[1]


def post(address: str, path: str, key: str, body: bytes) -> bytes:
    """A whole request."""
    host = "localhost" if address.startswith("unix:") else urlsplit(address).netloc
    return (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\naccept: */*\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def events_of(body: bytes) -> list[bytes]:
    """The server-sent events of a body without comments, each with its blank line; a rest without one comes last."""
    parts = body.split(b"\n\n")
    events = [part + b"\n\n" for part in parts[:-1] if not part.startswith(b":")]
    return [*events, parts[-1]] if parts[-1] else events


def arrivals(pieces: list[tuple[float, bytes]]) -> list[float]:
    """When each event (comments left out) was complete at the client."""
    times: list[float] = []
    unfinished = b""
    for at, piece in pieces:
        *complete, unfinished = (unfinished + piece).split(b"\n\n")
        times += [at] * sum(not event.startswith(b":") for event in complete)
    return times
