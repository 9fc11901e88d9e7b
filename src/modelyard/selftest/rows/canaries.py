"""Secrets and words of clients are planted, then looked for wherever a gateway writes or shows anything."""

from __future__ import annotations

import time
from pathlib import Path

from modelyard.observe.backwards import newest
from modelyard.observe.events import KINDS, events_of
from modelyard.observe.metrics import Metrics
from modelyard.observe.story import tell
from modelyard.records.base import encode
from modelyard.selftest.asking import ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import chat, connect, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

WITHIN_S = 10.0
# How the FakeEngine's answers begin.
ANSWER = b"w0 w1 w2"


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    engine = await bench.engine()
    gateway = await bench.gateway(deployment(replica(engine)))
    planted: list[bytes] = [gateway.key.encode(), ANSWER]
    for number in range(bench.size):
        canary = f"canary{bench.rng.getrandbits(96):024x}"
        await _plant(gateway, canary, number, tally)
        planted.append(canary.encode())
        bench.progress(tally.tried())
    for name, data in _shown(gateway):
        tally.saw("places looked at")
        for canary in planted:
            tally.expect(canary not in data, f"{name} holds {canary[:10].decode()}...")
    tally.expect(len(gateway.records()) > bench.size // 2, "hardly a request stands in the journal: nothing was tried")
    gateway.publish(deployment(replica(engine), debug_until=time.time() + 600))
    found = await until(lambda: _is_overheard(gateway), WITHIN_S)
    tally.expect(found is not None, "in an open debug window nothing was found: the search itself would find nothing")
    return tally.outcome()


async def _is_overheard(gateway: GatewayProcess) -> bool:
    """Whether the search finds a prompt and an answer where they are written on purpose, and only there."""
    await ask(gateway, chat(MODEL, content="overheard-canary"), within_s=WITHIN_S)
    holds = [name for name, data in _shown(gateway) if b"overheard-canary" in data and ANSWER in data]
    return bool(holds) and all(name.startswith("debug/") for name in holds)


async def _plant(gateway: GatewayProcess, canary: str, number: int, tally: Tally) -> None:
    """As a prompt, as a key, as a field, as the name of a model, as a broken body, in the
    target and as a trace's state."""
    bodies = {
        "prompt": chat(MODEL, content=canary),
        "prompt of a stream": chat(MODEL, content=canary, stream=True),
        "value": chat(MODEL, user=canary),
        "field": {**chat(MODEL), canary: canary},
        "stop": chat(MODEL, stop=[canary]),
    }
    kinds = (*bodies, "key", "broken body", "target", "trace")
    kind = kinds[number % len(kinds)]
    tally.saw(kind)
    if kind in bodies:
        asked = await ask(gateway, bodies[kind], within_s=WITHIN_S)
        tally.expect(asked.verdict == "whole", f"{kind}: {asked.verdict}: {asked.detail}")
        return
    lines = (f"traceparent: 00-{'1' * 32}-{'2' * 16}-01", f"tracestate: {canary}={canary}") if kind == "trace" else ()
    body: bytes | dict[str, object] = b"{" + canary.encode() if kind == "broken body" else chat(MODEL)
    path = f"/v1/chat/completions?{canary}" if kind == "target" else "/v1/chat/completions"
    connection = await connect(f"http://127.0.0.1:{gateway.port}")
    try:
        await connection.ask(post(path, canary if kind == "key" else gateway.key, body, *lines), WITHIN_S)
    finally:
        connection.close()


def _shown(gateway: GatewayProcess) -> list[tuple[str, bytes]]:
    """Every file of the state directory, what the process shows of itself, and every projection of the journal."""
    root = gateway.state.root
    found = [(str(path.relative_to(root)), path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()]
    process = Path(f"/proc/{gateway.pid}")
    found += [(f"/proc/{name}", (process / name).read_bytes()) for name in ("cmdline", "environ")]
    metrics, records = Metrics(), list(newest(gateway.state.journal))
    metrics.count(records)
    found.append(("metrics", metrics.render()))
    for record in records:
        found.append(("explain", encode(tell(record))))
        found += [(f"{kind} events", encode(event)) for kind in KINDS for event in events_of(record, kind)]
    return found


ROW = Row(
    key="36-window",
    name="canaries",
    claim="Keys, prompts, answers, field names and values, broken bodies, targets and trace states of clients stand in "
    "no journal, log, state file, metric, event or story, nor in the gateway's command line or environment.",
    unit="canaries",
    full=45,
    short=9,
    run=run,
    sources=("gateway", "records", "observe", "testing"),
    takes_s=10,
)
