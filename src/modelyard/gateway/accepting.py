"""Taking connections from the listening socket, and stopping for a while."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

BACKLOG = 4096
TLS_HANDSHAKE_TIMEOUT_S = 10.0


class Accepting:
    """While `paused` what comes waits in the kernel's queue. Without a pause a listener out of descriptors would take
    connections only to close them: libuv keeps one descriptor back for that."""

    def __init__(
        self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        self._sock, self._protocol, self._context = sock, protocol, context
        self._server: asyncio.Server | None = None

    @property
    def paused(self) -> bool:
        return self._server is None

    async def start(self) -> None:
        if self._server is not None:
            return
        # A server closes its socket with itself: it gets a second descriptor of the same one.
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=self._sock.dup(),
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S if self._context is not None else None,
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
