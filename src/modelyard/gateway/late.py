"""Connections that come while the process ends: whatever they ask, they are told to come again.

The listening socket is yard's and stays open; without an answer a load balancer would wait in its backlog to learn what
it could be told at once."""

from __future__ import annotations

import asyncio
from typing import cast

from modelyard.gateway.limits import WIRE
from modelyard.gateway.refusals import unavailable

RETRY_AFTER_S = 2


class LateConnection(asyncio.Protocol):
    """Answers the first request head with 503, then reads on for a moment, so that the answer is not lost to a reset
    by unread bytes."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        asyncio.get_running_loop().call_later(WIRE.head_timeout_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._is_answered or self._transport is None:
            return
        self._head += data
        if b"\r\n\r\n" not in self._head and len(self._head) <= WIRE.head_bytes:
            return
        self._is_answered, self._head = True, b""
        transport = self._transport
        refusal = unavailable("the gateway is stopping", retry_after_s=RETRY_AFTER_S, code="gateway_stopped")
        transport.write(refusal.response("-", keep_alive=False))
        if transport.can_write_eof():
            transport.write_eof()
            asyncio.get_running_loop().call_later(WIRE.linger_s, transport.abort)
        else:
            transport.close()
