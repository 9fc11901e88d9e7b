"""Requests that are small to send and large to hold, again and again, while somebody else is served."""

from __future__ import annotations

import asyncio
import re

from modelyard.selftest.asking import ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.cases.bombs import BOMBS, MIB, Bomb
from modelyard.selftest.connection import chat
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row
from modelyard.selftest.wire import RecordingEngine

GROWTH_MIB = 32
LOOK_EVERY_S = 0.005
ASK_EVERY_S = 0.05
WITHIN_S = 20.0


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    async with RecordingEngine(str(bench.state.sockets / "engine.sock")) as engine:
        gateway = await bench.gateway(deployment(replica(engine.address)))
        # Bodies of the usual largest size first: what the process holds for them is no growth by bombs.
        solo_ms = [await _legitimate_ms(gateway, tally) for _ in range(40)]
        before = gateway.rss_bytes()
        watch = _Watch(gateway)
        stop = asyncio.Event()
        legitimate = asyncio.create_task(_ask_on(gateway, tally, stop))
        while tally.counts["bombs"] < bench.size:
            bomb = BOMBS[tally.counts["bombs"] % len(BOMBS)]
            await _throw(gateway, bomb, tally)
            tally.saw("bombs")
            bench.progress(tally.tried())
        stop.set()
        meanwhile_ms = await legitimate
        watch.stop()
        tally.figure("growth of resident memory", (watch.most_bytes - before) / MIB, "MiB", at_most=GROWTH_MIB)
    tally.figure("legitimate, alone, p99", quantile(solo_ms, 0.99), "ms")
    bound = None if bench.short else max(1.5 * quantile(solo_ms, 0.99), 50.0)
    tally.figure("legitimate, meanwhile, p99", quantile(meanwhile_ms, 0.99), "ms", at_most=bound)
    return tally.outcome()


class _Watch:
    """The most memory that the gateway had resident, looked at 200 times a second."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.most_bytes = gateway.rss_bytes()
        self._gateway = gateway
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            self.most_bytes = max(self.most_bytes, self._gateway.rss_bytes())
            await asyncio.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        self._task.cancel()


async def _throw(gateway: GatewayProcess, bomb: Bomb, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    sent, heard = 0, b""
    try:
        async with asyncio.timeout(WITHIN_S):
            answer = asyncio.create_task(reader.read(65_536))
            try:
                for piece in bomb.pieces():
                    data = piece.replace(b"{key}", gateway.key.encode()) if not sent else piece
                    writer.write(data)
                    await writer.drain()
                    # Where the kernel takes all, nothing waits, and the answer would never be looked for.
                    await asyncio.sleep(0)
                    sent += len(data)
                    if answer.done():
                        break
            except ConnectionError:
                tally.saw("cut off while sending")
            try:
                heard = await answer
            except ConnectionError:
                tally.saw("reset before its answer was read")
    except TimeoutError:
        tally.wrong(f"{bomb.name}: no answer within {WITHIN_S:g} s")
    finally:
        writer.transport.abort()
    status = int(found[1]) if (found := re.match(rb"HTTP/1\.1 (\d{3}) ", heard)) else 0
    tally.saw(f"{status or 'no'} status")
    tally.expect(status in bomb.statuses, f"{bomb.name}: {status} instead of {bomb.statuses}: {heard[:120]!r}")
    # Beyond what the gateway reads of any body there is only what the kernels' buffers take.
    tally.expect(sent < 24 * MIB, f"{bomb.name}: {sent} bytes were taken")


async def _ask_on(gateway: GatewayProcess, tally: Tally, stop: asyncio.Event) -> list[float]:
    took_ms: list[float] = []
    while not stop.is_set():
        took_ms.append(await _legitimate_ms(gateway, tally))
        await asyncio.sleep(ASK_EVERY_S)
    return took_ms


async def _legitimate_ms(gateway: GatewayProcess, tally: Tally) -> float:
    asked = await ask(gateway, chat(MODEL, tokens=1), within_s=10.0)
    tally.expect(asked.verdict == "whole", f"a legitimate request: {asked.verdict}: {asked.detail}")
    return asked.took_s * 1e3


ROW = Row(
    key="29",
    name="bombs",
    claim="Bodies of enormous depth, number or length, heads and chunks without an end are refused by 4xx before they "
    "are read whole; the gateway's memory grows by 32 MiB at most; who asks meanwhile is answered, p99 at most 1.5 "
    "times what it is alone (or 50 ms).",
    unit="bombs",
    full=10 * len(BOMBS),
    short=len(BOMBS),
    run=run,
    sources=("gateway",),
    takes_s=10,
)
