"""The gateway is told to end while fifty streams are under way: once, and in every third trial a second time."""

from __future__ import annotations

import time

from modelyard.selftest.asking import judge
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Connection, Lost, chat
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row

STREAMS = 50
TOKENS = 60
TEXT = " ".join(f"w{index}" for index in range(TOKENS))
ENDLESS = 4000
NOT_READY_WITHIN_S = 0.1
HURRIED_WITHIN_S = 2.0
GRACE_S = 32.0
DEADLINE_S = 60.0
READY = b"GET /ready HTTP/1.1\r\nhost: gateway\r\n\r\n"


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    slack = 20 if bench.short else 1
    engine = await bench.engine(token_interval_s=0.02, tokens=ENDLESS, max_sequences=STREAMS)
    gateway = await bench.gateway(deployment(replica(engine, max_in_flight=STREAMS)))
    not_ready_s, drained_s, hurried_s = list[float](), list[float](), list[float]()
    for trial in range(bench.size):
        is_hurried = trial % 3 == 2 or bench.size == 1
        if gateway.exit_code is not None:
            await gateway.start()
        await _is_ready(gateway)
        body = chat(MODEL, stream=True, tokens=ENDLESS if is_hurried else TOKENS)
        streams = await bench.streams(gateway, body, STREAMS, DEADLINE_S)
        gateway.terminate()
        told_at = time.monotonic()
        took_s = await until(lambda: _says_not_ready(gateway), DEADLINE_S, every_s=0.005)
        not_ready_s.append(took_s if took_s is not None else DEADLINE_S)
        if is_hurried:
            gateway.terminate()
            hurried_at = time.monotonic()
            for stream in streams:
                await _is_told(stream, tally, f"trial {trial}")
            hurried_s.append(await _ended(gateway, hurried_at))
        else:
            for stream in streams:
                await _is_whole(stream, tally, f"trial {trial}")
            drained_s.append(await _ended(gateway, told_at))
        tally.saw(f"exit {gateway.exit_code}")
        tally.expect(gateway.exit_code == 0, f"trial {trial}: exit {gateway.exit_code}")
        bench.progress(tally.tried())
    tally.figure("not ready, p50", quantile(not_ready_s, 0.5) * 1e3, "ms")
    tally.figure("not ready, slowest", max(not_ready_s) * 1e3, "ms", at_most=1e3 * NOT_READY_WITHIN_S * slack)
    if drained_s:
        tally.figure("drained, slowest", max(drained_s), "s", at_most=GRACE_S)
    tally.figure("after a second signal, slowest", max(hurried_s), "s", at_most=HURRIED_WITHIN_S * slack)
    return tally.outcome()


async def _is_whole(stream: Connection, tally: Tally, where: str) -> None:
    verdict, detail = await _verdict(stream, TEXT)
    tally.saw(verdict)
    tally.expect(verdict == "whole", f"{where}: {verdict} {detail}")


async def _is_told(stream: Connection, tally: Tally, where: str) -> None:
    """Cut short, and said so: an error event, never a [DONE]."""
    verdict, detail = await _verdict(stream, None)
    tally.saw(f"after a second signal: {verdict}")
    tally.expect(verdict == "cut", f"{where}, after a second signal: {verdict} {detail}")


async def _verdict(stream: Connection, expected: str | None) -> tuple[str, str]:
    try:
        response = await stream.response(DEADLINE_S)
    except Lost as lost:
        return "reset", str(lost)
    except TimeoutError:
        return "hung", ""
    finally:
        stream.close()
    return judge(response.status, response.headers, response.body, True, expected)


async def _says_not_ready(gateway: GatewayProcess) -> bool:
    """Asked on a connection of its own, as a load balancer does; one that is refused is an answer too."""
    try:
        connection = await gateway.connect()
        try:
            return (await connection.ask(READY, DEADLINE_S)).status == 503
        finally:
            connection.close()
    except (Lost, OSError):
        return True


async def _is_ready(gateway: GatewayProcess) -> None:
    async def is_served() -> bool:
        return not await _says_not_ready(gateway)

    if await until(is_served, DEADLINE_S) is None:
        raise TimeoutError


async def _ended(gateway: GatewayProcess, since: float) -> float:
    await until(lambda: gateway.exit_code is not None, DEADLINE_S, every_s=0.005)
    return time.monotonic() - since


ROW = Row(
    key="25",
    name="the gateway is told to end",
    claim=f"With {STREAMS} streams under way: not ready within 100 ms; no stream is cut; it ends within its grace; "
    "after a second signal it ends within 2 s, and each stream is told so by an error event.",
    unit="ends",
    full=30,
    short=3,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=40,
)
