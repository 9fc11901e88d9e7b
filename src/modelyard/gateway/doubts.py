"""Launches that lost a connection are asked for another one: where nobody listens any more, the engine has died."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic

from modelyard.gateway.admission import Admission
from modelyard.gateway.poison import Launch
from modelyard.gateway.seats import Seats

# An engine that is ending may take a connection a moment before its socket closes.
STAYS_S = 0.05


class Doubts:
    """One question at a time to each launch. `raised` is set where there may be one to ask."""

    def __init__(self) -> None:
        self.raised = asyncio.Event()
        self._asking: dict[Launch, asyncio.Task[None]] = {}

    async def settle_forever(self, admissions: Mapping[str, Admission]) -> None:
        while True:
            await self.raised.wait()
            self.raised.clear()
            for admission in admissions.values():
                self._settle(admission)

    def _settle(self, admission: Admission) -> None:
        for launch in admission.suspects.doubted():
            seats = admission.seats.get(launch[0])
            if seats is not None and seats.launch == launch and launch not in self._asking:
                self._asking[launch] = asyncio.get_running_loop().create_task(self._ask(admission, seats))

    async def _ask(self, admission: Admission, seats: Seats) -> None:
        began = monotonic()
        try:
            listens = await _listens(seats)
        finally:
            del self._asking[seats.launch]
        if listens is None:
            return
        if listens:
            admission.suspects.lived(seats.launch, began)
        else:
            admission.suspects.died(seats.launch, began)
        admission.advance()


async def _listens(seats: Seats) -> bool | None:
    """None where that cannot be told: it may be too busy to say."""
    try:
        connection = await seats.pool.connect()
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return None
    await asyncio.sleep(STAYS_S)
    stays = connection.usable
    connection.abort()
    return True if stays else None
