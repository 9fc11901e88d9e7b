"""Taking connections from a socket that several workers share, so that each gets its part.

The kernel wakes all of them for a new connection, and libuv's own loop lets the quickest take everything that waits: of
300 connections opened at once, 265 came to one of three workers. Whoever has taken some here rests for a moment, in
which the others take theirs: then 114, 104 and 82 (docs/decisions/0024)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

# Together they let one worker take 8,000 connections a second, more than it can serve.
MOST_AT_ONCE = 8
REST_S = 0.001
# No descriptor or no memory is left: that passes.
EXHAUSTED_REST_S = 0.1


class TakingTurns:
    """Accepts from `sock`, which does not block, until it is closed; `make` builds the protocol of each connection."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        handshake_timeout_s: float | None,
    ) -> None:
        self._sock, self._make = sock, make
        self._context, self._handshake_timeout_s = context, handshake_timeout_s
        self._loop = asyncio.get_running_loop()
        self._resting: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        self._loop.add_reader(sock.fileno(), self._take)

    def close(self) -> None:
        """Take no more, and close this descriptor of the socket."""
        if self._resting is not None:
            self._resting.cancel()
        else:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _take(self) -> None:
        rest_s = REST_S
        try:
            for _ in range(MOST_AT_ONCE):
                connection, _ = self._sock.accept()
                connection.setblocking(False)
                task = self._loop.create_task(self._begin(connection))
                self._beginning.add(task)
                task.add_done_callback(self._beginning.discard)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass
        except OSError:
            rest_s = EXHAUSTED_REST_S
        self._loop.remove_reader(self._sock.fileno())
        self._resting = self._loop.call_later(rest_s, self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        self._loop.add_reader(self._sock.fileno(), self._take)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, connection, ssl=self._context, ssl_handshake_timeout=self._handshake_timeout_s
            )
        except (OSError, TimeoutError):
            # The client has gone, or does not speak TLS (ssl.SSLError is an OSError).
            connection.close()
