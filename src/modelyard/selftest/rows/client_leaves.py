"""Clients that leave: before the first token, in the middle of a stream, and while a plain answer is made."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from modelyard.records.journal import RequestRecord
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Connection, connect, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row
from modelyard.testing import FakeEngine

AT_ONCE = 8
RELEASED_WITHIN_S = 1.0
DEADLINE_S = 20.0
TOKENS = 4000
SEEN_PIECES = 3


@dataclass(frozen=True)
class Endpoint:
    """`piece` stands in each event that holds a piece of an answer."""

    path: str
    piece: bytes

    def body(self, number: int, *, stream: bool) -> dict[str, Any]:
        shared: dict[str, Any] = {"model": MODEL, "stream": stream}
        messages = [{"role": "user", "content": f"question {number}"}]
        match self.path:
            case "/v1/completions":
                return {**shared, "prompt": f"question {number}", "max_tokens": TOKENS}
            case "/v1/responses":
                return {**shared, "input": f"question {number}", "max_output_tokens": TOKENS}
            case _:
                return {**shared, "messages": messages, "max_tokens": TOKENS}


ENDPOINTS = (
    Endpoint("/v1/chat/completions", b'"content":"'),
    Endpoint("/v1/completions", b'"text":"'),
    Endpoint("/v1/messages", b'"text_delta"'),
    Endpoint("/v1/responses", b'"response.output_text.delta"'),
)
MOMENTS = ("before the first token", "in the middle of a stream", "while a plain answer is made")


@dataclass(frozen=True)
class Scene:
    gateway: GatewayProcess
    engine: FakeEngine
    engine_side: Connection

    async def running(self) -> float:
        """What the engine says that it works on."""
        request = b"GET /metrics HTTP/1.1\r\nhost: engine\r\n\r\n"
        text = (await self.engine_side.ask(request, DEADLINE_S)).body.decode()
        names = ("modelyard_engine_requests_running ", "modelyard_engine_requests_waiting ")
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(names))

    async def is_idle(self) -> bool:
        return await self.running() == 0


async def run(bench: Bench) -> Outcome:
    tally, released_s = Tally(), list[float]()
    # The engine has room for no more than one batch: a seat that is not given back stops the next one.
    engine = await bench.engine(max_sequences=AT_ONCE, tokens=TOKENS)
    gateway = await bench.gateway(deployment(replica(engine, max_in_flight=AT_ONCE)))
    scene = Scene(gateway, engine, await connect(engine.address))
    share, number = bench.size // (len(ENDPOINTS) * len(MOMENTS)), 0
    for moment in MOMENTS:
        slow = moment == MOMENTS[0]
        await engine.set(prefill_s=30.0 if slow else 0.0, token_interval_s=0.01)
        for endpoint in ENDPOINTS:
            left = share
            while left > 0:
                count = min(AT_ONCE, left)
                where = f"{endpoint.path}, {moment}"
                batch = [endpoint.body(number + one, stream=moment != MOMENTS[2]) for one in range(count)]
                released_s += await _batch(bench, scene, endpoint, moment, batch, tally, where)
                number, left = number + count, left - count
                bench.progress(tally.tried(count))
    scene.engine_side.close()
    bound_s = RELEASED_WITHIN_S * (20 if bench.short else 1)
    tally.figure("engine's slot released, p50", quantile(released_s, 0.5) * 1e3, "ms")
    tally.figure("engine's slot released, p99", quantile(released_s, 0.99) * 1e3, "ms", at_most=bound_s * 1e3)
    await _check_service(gateway, tally)
    return tally.outcome()


async def _batch(
    bench: Bench, scene: Scene, endpoint: Endpoint, moment: str, bodies: list[dict[str, Any]], tally: Tally, where: str
) -> list[float]:
    """As many clients at once; all leave in one moment. The seconds until the engine was free, for each of them."""
    before = len(scene.gateway.records())
    connections = [await scene.gateway.connect() for _ in bodies]
    for connection, body in zip(connections, bodies, strict=True):
        connection.send(post(endpoint.path, scene.gateway.key, body))

    async def are_all_at_work() -> bool:
        return await scene.running() == len(bodies)

    if await until(are_all_at_work, DEADLINE_S, every_s=0.002) is None:
        answers = [bytes(one.body[:200]) for one in connections if one.status]
        tally.wrong(f"{where}: only {await scene.running():g} of {len(bodies)} reached the engine: {answers[:1]}")
    if moment == MOMENTS[1]:
        await asyncio.gather(*(_has_pieces(one, endpoint, tally, where) for one in connections))
    await asyncio.sleep(bench.rng.uniform(0.0, 0.03))
    pieces = [one.body.count(endpoint.piece) for one in connections]
    at = time.monotonic()
    for connection in connections:
        connection.close()
    is_free = await until(scene.is_idle, DEADLINE_S, every_s=0.002)
    took_s = time.monotonic() - at
    tally.expect(is_free is not None, f"{where}: the engine works on after {DEADLINE_S:g} s")
    await _check_records(scene.gateway, before, pieces, tally, where)
    return [took_s] * len(bodies)


async def _has_pieces(connection: Connection, endpoint: Endpoint, tally: Tally, where: str) -> None:
    seen = await until(lambda: connection.body.count(endpoint.piece) >= SEEN_PIECES, DEADLINE_S, every_s=0.002)
    tally.expect(seen is not None, f"{where}: no piece came: {connection.status} {bytes(connection.body[:200])}")


async def _check_records(gateway: GatewayProcess, before: int, pieces: list[int], tally: Tally, where: str) -> None:
    """One record for each, gone, with at least the tokens that its client has."""
    found: list[RequestRecord] = []

    def are_written() -> bool:
        found[:] = gateway.records()[before:]
        return len(found) >= len(pieces)

    await until(are_written, DEADLINE_S)
    tally.expect(len(found) == len(pieces), f"{where}: {len(found)} records of {len(pieces)} requests")
    for record in found:
        tally.saw(f"{where}: {record.outcome}")
        tally.expect(record.outcome == "client_gone", f"{where}: in the journal as {record.outcome} {record.status}")
    counted = sorted(record.completion_tokens for record in found)
    for told, seen in zip(counted, sorted(pieces), strict=False):
        tally.expect(told >= seen, f"{where}: {seen} pieces reached a client, {told} tokens are accounted")


async def _check_service(gateway: GatewayProcess, tally: Tally) -> None:
    """All seats are free again: as many at once as there are get their answer."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "still there?"}], "max_tokens": 2}

    async def ask() -> int:
        connection = await gateway.connect()
        try:
            return (await connection.ask(post(ENDPOINTS[0].path, gateway.key, body), DEADLINE_S)).status
        finally:
            connection.close()

    statuses = await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    tally.expect(statuses == [200] * AT_ONCE, f"afterwards the gateway answers {statuses}")


ROW = Row(
    key="18",
    name="clients leave",
    claim="Whenever a client leaves, before the first token, in the middle of a stream or while a plain answer is "
    "made, by chat, completions, messages or responses, the engine's slot is free within 1 s (p99), the seat is given "
    "back, and one record counts at least the tokens that the client has.",
    unit="departures",
    full=2400,
    short=48,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=15,
)
