"""JSON of every kind as a body, and as a field of a request that is sound otherwise."""

from __future__ import annotations

import json

from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.cases.json_texts import TEXTS, JsonText
from modelyard.selftest.connection import Connection, Lost, Response, chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row
from modelyard.selftest.wire import RecordingEngine

SLOWEST_MS = 50.0
WITHIN_S = 10.0


async def run(bench: Bench) -> Outcome:
    tally, took_ms = Tally(), list[float]()
    async with RecordingEngine(str(bench.state.sockets / "engine.sock")) as engine:
        gateway = await bench.gateway(deployment(replica(engine.address)))
        connection = await gateway.connect()
        for text in TEXTS[: bench.size]:
            for inside in (False, True):
                connection, response = await _asked(gateway, connection, _body(text, inside=inside))
                if response is None:
                    tally.wrong(f"{text.name}: no answer")
                    continue
                took_ms.append(response.took_s * 1e3)
                _judge(text, response, tally, inside=inside)
            bench.progress(tally.tried())
        for broken in engine.broken:
            tally.wrong(f"what reached the engine is no HTTP: {broken}")
        for request in engine.take():
            tally.expect(set(request.json()) <= {"model", "messages", "max_tokens", "stream"}, f"sent {request.body!r}")
        connection.close()
    tally.figure("answer, p50", quantile(took_ms, 0.5), "ms")
    tally.figure("answer, slowest", max(took_ms), "ms", at_most=SLOWEST_MS * 40 if bench.short else SLOWEST_MS)
    return tally.outcome()


def _body(text: JsonText, *, inside: bool) -> bytes:
    if not inside:
        return text.text
    sound = json.dumps(chat(MODEL, tokens=1)).encode()
    return sound[:-1] + b', "unknown_field": ' + text.text + b"}"


async def _asked(gateway: GatewayProcess, connection: Connection, body: bytes) -> tuple[Connection, Response | None]:
    """The answer, and a connection for the next question."""
    if not connection.open:
        connection = await gateway.connect()
    try:
        request = post("/v1/chat/completions", gateway.key, body)
        return connection, await connection.ask(request, WITHIN_S)
    except (Lost, TimeoutError):
        connection.close()
        return connection, None


def _judge(text: JsonText, response: Response, tally: Tally, *, inside: bool) -> None:
    status, where = response.status, f"{text.name}{', inside a request' if inside else ''}"
    tally.saw(f"{status} for {text.kind}{' inside' if inside else ''}")
    if text.kind == "no":
        tally.expect(status == 400, f"{where}: {status} instead of 400")
    elif inside and text.kind == "yes":
        tally.expect(status == 200, f"{where}: {status} instead of 200: {response.body[:200]!r}")
    else:
        tally.expect(status == 200 or 400 <= status < 500, f"{where}: {status}")
    if status != 200:
        error = response.json().get("error", {})
        sound = response.headers.get("content-type") == "application/json" and {"message", "type", "code"} <= set(error)
        tally.expect(sound, f"{where}: no error of OpenAI's shape: {response.body[:200]!r}")


ROW = Row(
    key="28",
    name="JSON as bodies: right, wrong and debatable",
    claim="What JSON forbids is refused with 400 and an error of OpenAI's shape, alone and inside a request; what it "
    "allows or leaves open is never answered with 5xx; no answer takes longer than 50 ms.",
    unit="texts",
    full=len(TEXTS),
    short=len(TEXTS),
    run=run,
    sources=("gateway",),
    takes_s=3,
)
