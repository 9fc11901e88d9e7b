"""Sends spans and metrics to an OpenTelemetry collector, if one is named. The journal is the queue: while the collector
is away nothing is kept in memory, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import aiohttp

from modelyard.clock import Clock
from modelyard.observe.journal import BEGINNING, Checkpoint, read_journal
from modelyard.observe.metrics import Metrics
from modelyard.observe.otlp import metrics, traces
from modelyard.records.base import UnreadableRecord, decode, encode
from modelyard.settings import Telemetry
from modelyard.state import StateDirectory, write_atomically

READ_EVERY_S = 5.0
# About a thousand spans: well under the 20 MiB that the protocol advises.
STEP_BYTES = 512 * 1024
TIMEOUT_S = 10.0
RETRY_FROM_S, RETRY_MOST_S = 1.0, 60.0
# The protocol's specification, "Retryable Response Codes"; whatever else is refused must not be sent again.
RETRYABLE = (429, 502, 503, 504)


class Exporter:
    """One per control. Spans go on where they were last acknowledged, also over a restart of control; the first time
    they begin at the journal's end. A batch may come twice where an acknowledgement was lost, never not at all, unless
    the collector refuses it for good."""

    def __init__(self, state: StateDirectory, telemetry: Telemetry, shown: Callable[[], Metrics], clock: Clock) -> None:
        self._state, self._telemetry, self._shown, self._clock = state, telemetry, shown, clock
        self._complaint = ""

    async def spans_forever(self) -> None:
        checkpoint = self._checkpoint()
        async with aiohttp.ClientSession() as session:
            while True:
                step = read_journal(self._state.journal, checkpoint, step_bytes=STEP_BYTES)
                if step.records:
                    body = traces(step.records, self._telemetry.resource)
                    await self._deliver(session, "v1/traces", body)
                if step.checkpoint != checkpoint:
                    checkpoint = step.checkpoint
                    self._write(checkpoint)
                await asyncio.sleep(0 if step.more else READ_EVERY_S)

    async def metrics_forever(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                await asyncio.sleep(self._telemetry.metrics_every_s)
                shown = self._shown()
                now = self._clock.wall()
                await self._send(session, "v1/metrics", metrics(shown.registry, shown.since, now, self._resource))

    @property
    def _resource(self) -> dict[str, str]:
        return dict(self._telemetry.resource)

    async def _deliver(self, session: aiohttp.ClientSession, path: str, body: bytes) -> None:
        """Until it is taken, or refused for good; ever less often while nobody answers."""
        pause_s = RETRY_FROM_S
        while not await self._send(session, path, body):
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, RETRY_MOST_S)

    async def _send(self, session: aiohttp.ClientSession, path: str, body: bytes) -> bool:
        """Whether this is settled: taken, or refused in a way that sending it again would not mend."""
        headers = {"content-type": "application/json", **self._telemetry.headers}
        try:
            async with session.post(
                f"{self._telemetry.endpoint}/{path}",
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                allow_redirects=False,
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self._complain(f"no answer from the collector: {type(error).__name__}; it is asked again")
            return False
        if status == 200:
            self._complaint = ""
            return True
        again = status in RETRYABLE
        self._complain(f"the collector answered {status}: {'it is asked again' if again else 'that part is left out'}")
        return not again

    def _complain(self, text: str) -> None:
        """Once, not at every try."""
        if text != self._complaint:
            self._complaint = text
            print(f"error: telemetry: {text}", flush=True)

    def _checkpoint(self) -> Checkpoint:
        try:
            return decode(self._state.exported.read_bytes(), Checkpoint)
        except (FileNotFoundError, UnreadableRecord):
            sizes = {path.name: path.stat().st_size for path in self._state.journal.glob("*.ndjson")}
            return Checkpoint(offsets=sizes) if sizes else BEGINNING

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            write_atomically(self._state.exported, encode(checkpoint))
        except OSError as error:
            # A full disk: after a restart some spans come twice.
            self._complain(f"how far spans were sent could not be noted: {error.strerror}")
