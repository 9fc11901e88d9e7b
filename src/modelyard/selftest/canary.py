"""A listener where nobody may ever come."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Canary:
    """`async with Canary() as canary:` listens on the loopback addresses, both families where there are two."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0
        self._servers: list[asyncio.Server] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Canary:
        self._servers.append(await asyncio.start_server(self._noted, "127.0.0.1", 0))
        self.port = self._servers[0].sockets[0].getsockname()[1]
        with suppress(OSError):
            self._servers.append(await asyncio.start_server(self._noted, "::1", self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    def _noted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()
