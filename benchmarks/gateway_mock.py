"""A mock engine that costs as little as Python allows: fixed answers, streams on a timer, one process.

`python -m benchmarks.gateway_mock --unix PATH --port N` serves both; `GET /counts` tells what it was asked so far."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
from typing import cast

import httptools
import msgspec
import uvloop

from benchmarks.gateway_texts import ANSWER, DONE, STREAM_INTERVAL_S, stream_event, usage_event


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Wanted(msgspec.Struct):
    """The fields of a request that decide the answer."""

    max_tokens: int = 16
    seed: int = 0
    stream: bool = False
    stream_options: StreamOptions | None = None


class Counts(msgspec.Struct):
    """What the engine was asked: each count is compared with what the load generator sent."""

    unary: int = 0
    streams: int = 0
    usage_asked: int = 0
    body_bytes: int = 0
    cut_streams: int = 0


def _unary(content_type: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (content_type, len(body), body)


CHAT = _unary(b"application/json", ANSWER)
BAD = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
MODELS = _unary(b"application/json", b'{"object":"list","data":[{"id":"mock","object":"model","owned_by":"mock"}]}')
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


class Connection(asyncio.Protocol):
    """One request at a time, answered as soon as it is whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counts) -> None:
        self.loop, self.counts = loop, counts
        self.decode = msgspec.json.Decoder(Wanted).decode
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []
        self.url = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.counts.cut_streams += 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            self.transport.write(self._look())
            return
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        self.body.clear()
        try:
            wanted = self.decode(body)
        except msgspec.MsgspecError:
            self.transport.write(BAD)
            return
        self.counts.body_bytes += len(body)
        if not wanted.stream:
            self.counts.unary += 1
            self.transport.write(CHAT)
            return
        self.counts.streams += 1
        self.with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        self.counts.usage_asked += self.with_usage
        self.stream, self.events, self.sent = wanted.seed, wanted.max_tokens, 0
        self.began = self.loop.time()
        self.transport.write(STREAM_HEAD)
        self._next_event()

    def _look(self) -> bytes:
        if self.url == b"/counts":
            return _unary(b"application/json", msgspec.json.encode(self.counts))
        return MODELS

    def _next_event(self) -> None:
        self.transport.write(_chunk(stream_event(self.stream, self.sent, self.events)))
        self.sent += 1
        if self.sent < self.events:
            # Timed from the stream's beginning: lateness of one event does not push the later ones.
            self.timer = self.loop.call_at(self.began + self.sent * STREAM_INTERVAL_S, self._next_event)
            return
        self.timer = None
        usage = _chunk(usage_event(self.stream, self.events)) if self.with_usage else b""
        self.transport.write(usage + _chunk(DONE) + b"0\r\n\r\n")


async def serve(unix_path: str, port: int) -> None:
    loop, counts = asyncio.get_running_loop(), Counts()
    await loop.create_unix_server(lambda: Connection(loop, counts), unix_path, backlog=1024)
    await loop.create_server(lambda: Connection(loop, counts), "127.0.0.1", port, backlog=1024)
    gc.freeze()
    print(f"mock engine {os.getpid()} ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unix", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.unix, chosen.port))


if __name__ == "__main__":
    main()
