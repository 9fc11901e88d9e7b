"""The link of a worker that is not the owner: the owner's word comes here, and its silence is noticed here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from modelyard.gateway.group_wire import BEAT_S, Frames, Granted, Members, NotSeated, ToWorker
from modelyard.gateway.places import Places

# So many beats in a row without a word: the owner is stopped, or far too busy. Counted in beats of our own, so that a
# pause of ours is not taken for one of the owner's.
SILENT_BEATS = 4


class LinkToOwner(Frames):
    """`over` once the owner is gone, `is_silent` while it says nothing. `members` hears how many workers are linked to
    it."""

    def __init__(self, places: Places, members: Callable[[int], None]) -> None:
        super().__init__(ToWorker)
        self._places, self._members = places, members
        self._heard, self.over = asyncio.Event(), asyncio.Event()
        self._missed = 0

    @property
    def is_silent(self) -> bool:
        return self._missed >= SILENT_BEATS

    async def answered(self, within_s: float) -> None:
        """Ends the link where the owner says nothing in reply: a connection that was made just as the owner closed its
        server can stay open with nobody at its other end (seen with asyncio's loop)."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), within_s)
        if not self._heard.is_set():
            self.abort()
            self.over.set()

    async def watch(self, on_silent: Callable[[], None]) -> None:
        """Until it is over; `on_silent` is called whenever the owner has been silent for long enough."""
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), BEAT_S)
            self._missed += 1
            if self._missed == SILENT_BEATS:
                on_silent()

    def heard(self, message: object) -> None:
        self._heard.set()
        self._missed = 0
        match message:
            case Granted():
                self._places.granted(message)
            case NotSeated():
                self._places.turned_away(message)
            case Members(count):
                self._members(count)
            case _:
                self.abort()

    def ended(self) -> None:
        self._heard.set()
        self.over.set()


async def dial(address: Path, places: Places, members: Callable[[int], None]) -> LinkToOwner | None:
    """None where nobody answers there."""
    loop = asyncio.get_running_loop()
    try:
        _, link = await loop.create_unix_connection(lambda: LinkToOwner(places, members), str(address))
    except OSError:
        return None
    return link
