"""Large bodies one at a time and step by step: parsing a megabyte takes a millisecond or two, and clients with small
requests should wait for one step, never for all that arrived together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator

LARGE_BODY_BYTES = 128 * 1024


Work = Generator[None, None, None]


class Turns:
    """Runs one step of work per turn of the event loop; the loop looks at its sockets in between."""

    def __init__(self) -> None:
        self._waiting: deque[Work] = deque()

    def take(self, work: Work) -> None:
        """`work` runs soon, after what waits already, up to its next yield in each turn."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        is_over = True
        try:
            next(self._waiting[0])
            is_over = False
        except StopIteration:
            pass
        finally:
            if is_over:
                self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._next)
