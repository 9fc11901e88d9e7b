"""Taking connections from the listening socket, and stopping for a while."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from modelyard.gateway.taking_turns import TakingTurns

BACKLOG = 4096
TLS_HANDSHAKE_TIMEOUT_S = 10.0


class Accepting:
    """While `paused` what comes waits in the kernel's queue. Without a pause a listener out of descriptors would take
    connections only to close them: libuv keeps one descriptor back for that. `shared` where other workers take
    connections from the same socket."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        *,
        shared: bool = False,
    ) -> None:
        self._sock, self._protocol = sock, protocol
        self._context, self._shared = context, shared
        self._handshake_timeout_s = TLS_HANDSHAKE_TIMEOUT_S if context is not None else None
        self._server: asyncio.Server | TakingTurns | None = None

    @property
    def paused(self) -> bool:
        return self._server is None

    async def start(self) -> None:
        if self._server is not None:
            return
        # A server closes its socket with itself: it gets a second descriptor of the same one.
        sock = self._sock.dup()
        if self._shared:
            self._server = TakingTurns(sock, self._protocol, self._context, self._handshake_timeout_s)
            return
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=sock,
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=self._handshake_timeout_s,
        )

    def pause(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def follow(self, closed: bool) -> None:
        """Pause or go on. Where there is no descriptor to go on with, the next look tries again."""
        if closed:
            self.pause()
        else:
            with contextlib.suppress(OSError):
                await self.start()
