"""The open connections of a worker, and how many of them one client's address may hold."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from modelyard.gateway.limits import WireLimits

C = TypeVar("C", bound=Hashable)
# So many of those that find no place are told so before they end.
TURNED_AWAY = 32


class Connections(Generic[C]):
    """`quiet` is set while there are none; `turned_away` counts those that found no place."""

    def __init__(self, wire: WireLimits) -> None:
        self._wire = wire
        self._sources: dict[C, bytes] = {}
        self._held: Counter[bytes] = Counter()
        self.open: set[C] = set()
        self.turned_away = 0
        self.quiet = asyncio.Event()
        self.quiet.set()

    def add(self, connection: C, peer: Any) -> bool:
        """Count a connection, `peer` as its socket names the other end. False where there is no place for it: whoever
        asks ends it, and still discards it then."""
        self.open.add(connection)
        self.quiet.clear()
        source = source_of(peer)
        if source:
            self._sources[connection] = source
            self._held[source] += 1
        if len(self.open) <= self._wire.connections and self._held.get(source, 0) <= self._wire.connections_per_address:
            return True
        self.turned_away += 1
        return False

    @property
    def is_full(self) -> bool:
        """Whether all places are taken, and not so many have come besides that the next one is cut off without a
        word."""
        return self._wire.connections < len(self.open) <= self._wire.connections + TURNED_AWAY

    def discard(self, connection: C) -> None:
        self.open.discard(connection)
        source = self._sources.pop(connection, None)
        if source is not None:
            self._held[source] -= 1
            if not self._held[source]:
                del self._held[source]
        if not self.open:
            self.quiet.set()


def source_of(peer: Any) -> bytes:
    """Whom a connection is counted for: an IPv4 address, or the /64 network that one holder of IPv6 addresses has.
    Empty for this machine itself (loopback, unix sockets): there a proxy speaks for everybody."""
    if not isinstance(peer, tuple) or not peer:
        return b""
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])  # type: ignore[index]
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped if mapped is not None else address
    if address.is_loopback:
        return b""
    return address.packed if address.version == 4 else address.packed[:8]
