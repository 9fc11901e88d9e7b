"""An engine that answers at once, in the campaign's own process: what it cost is the request's own `seed` and
`max_tokens`, so that whoever asked knows what the journal must say."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"ok"},"finish_reason":null}]}\n\n'
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._unread = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._unread, 0, end + 2)
            size = end + 4 + (int(found[1]) if found is not None else 0)
            if len(self._unread) < size:
                return
            body, self._unread = self._unread[end + 4 : size], self._unread[size:]
            if self._transport is not None:
                self._transport.write(_answer(json.loads(body)))


def _answer(asked: dict[str, int]) -> bytes:
    usage = {"prompt_tokens": asked["seed"], "completion_tokens": asked["max_tokens"]}
    usage["total_tokens"] = sum(usage.values())
    if asked.get("stream"):
        told = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        return _STREAM_HEAD + b"".join(_chunk(part) for part in (_EVENT, _EVENT, told, b"data: [DONE]\n\n", b""))
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    body = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def instant_engine(path: Path) -> asyncio.Server:
    """One that listens on a unix socket; its owner closes it."""
    return await asyncio.get_running_loop().create_unix_server(_Connection, path)
