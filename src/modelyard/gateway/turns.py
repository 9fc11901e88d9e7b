"""Large bodies one at a time: parsing a megabyte takes a millisecond or two, and clients with small requests should
wait for one of those, never for all that arrived together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

LARGE_BODY_BYTES = 128 * 1024


class Turns:
    """Runs one piece of work per turn of the event loop; the loop looks at its sockets in between."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, work: Callable[[], None]) -> None:
        """`work` runs soon, after what waits already."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        try:
            self._waiting[0]()
        finally:
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._next)
