"""Keys, prompts, answers and whatever else a request says: looked for everywhere that we write or show."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from modelyard.observe.events import KINDS, events_of
from modelyard.observe.metrics import Metrics
from modelyard.observe.story import tell
from modelyard.records.base import encode
from modelyard.records.keys import KeyRevoked
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.connection import Response, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

DEADLINE_S = 20.0
REVOKED_WITHIN_S = 1.0
TOKENS = 3
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
# Where a canary is put; each round plants one of each.
PLACES = (
    *("key", "prompt", "answer", "user", "tool", "header", "query", "wrong value", "broken body", "crash"),
    *("wrong key", "field name", "stop text", "trace state"),
)


async def run(bench: Bench) -> Outcome:
    tally, planted, shown = Tally(), dict[str, str](), list[bytes]()
    address = f"unix:{bench.state.sockets / 'engine.sock'}"
    gateway = await bench.gateway(deployment(replica(address), retry_after_s=1))
    revoked_s: list[float] = []
    for number in range(-(-bench.size // len(PLACES))):
        canary = {place: f"canary{bench.rng.getrandbits(64):016x}" for place in PLACES[1:]}
        key = gateway.add_key("campaign")
        planted |= {value: place for place, value in canary.items()} | {key.secret: "key"}
        engine = await bench.engine(address=address, stem=canary["answer"], crash_on_text=canary["crash"])
        gateway.publish(deployment(replica(address, launch=f"l{number}"), retry_after_s=1))
        await _until_served(gateway, key.secret, tally)
        shown += [response.body async for response in _traffic(gateway, key.secret, canary, tally)]
        gateway.log_key(KeyRevoked(id=key.record.id, at=time.time()))
        revoked_s.append(await _revoked(gateway, key.secret, tally))
        await engine.ended()
        bench.progress(tally.tried(len(PLACES)))
    for where, text in _everywhere(gateway, shown):
        for canary, place in planted.items():
            tally.expect(canary.encode() not in text, f"the {place} stands in {where}")
        tally.saw("places searched")
    await _would_be_found(bench, gateway, tally)
    tally.saw("canaries planted", len(planted))
    bound_s = REVOKED_WITHIN_S * (20 if bench.short else 1)
    tally.figure("a revoked key works no more after, slowest", max(revoked_s), "s", at_most=bound_s)
    return tally.outcome()


async def _would_be_found(bench: Bench, gateway: GatewayProcess, tally: Tally) -> None:
    """The same search, where there is something to find: the ids of keys, which may be written, and what a client says
    while a debug window is open, in that window's files and nowhere else."""
    public_ids = {record.key_id.encode() for record in gateway.records() if record.key_id}
    texts = [text for _, text in _everywhere(gateway, [])]
    found = {one for one in public_ids if any(one in text for text in texts)}
    tally.expect(bool(public_ids) and found == public_ids, "the search does not even find the ids of keys")
    overheard = f"canary{bench.rng.getrandbits(64):016x}"
    engine = await bench.engine(stem=overheard)
    gateway.publish(deployment(replica(engine, launch="window"), debug_until=time.time() + 600))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS}

    async def is_found() -> bool:
        await _ask(gateway, gateway.key, PATHS[0], body)
        places = [where for where, text in _everywhere(gateway, []) if overheard.encode() in text]
        tally.expect(all("file debug/" in where for where in places), f"what was overheard stands in {places}")
        return bool(places)

    tally.expect(await until(is_found, DEADLINE_S) is not None, "in an open debug window the search finds nothing")


async def _traffic(gateway: GatewayProcess, key: str, canary: dict[str, str], tally: Tally) -> AsyncIterator[Response]:
    """Yields the answers that must not hold anything of what was said: the errors."""
    for path in PATHS:
        for stream in (False, True):
            lines = (
                *(f"x-canary: {canary['header']}", f"baggage: secret={canary['header']}"),
                *(f"traceparent: 00-{'1' * 32}-{'2' * 16}-01", f"tracestate: {canary['trace state']}=1"),
            )
            response = await _ask(gateway, key, f"{path}?q={canary['query']}", _body(path, canary, stream), *lines)
            tally.expect(response is not None and response.status == 200, f"{path} is not answered: {response}")
        wrong = {**_body(path, canary, False), "temperature": canary["wrong value"], "stream": canary["wrong value"]}
        for body in (wrong, f'{{"model": "m", "x": "{canary["broken body"]}'.encode()):
            response = await _ask(gateway, key, path, body)
            tally.expect(response is not None and response.status == 400, f"{path} takes {body!r}")
            if response is not None:
                yield response
    strange = {**_body(PATHS[0], canary, False), canary["field name"]: 1, "stop": [canary["stop text"]]}
    response = await _ask(gateway, key, PATHS[0], strange)
    tally.expect(response is not None and response.status == 200, f"a field that nobody knows is answered {response}")
    response = await _ask(gateway, canary["wrong key"], PATHS[0], strange)
    tally.expect(response is not None and response.status == 401, f"a wrong key is answered {response}")
    if response is not None:
        yield response
    crash = {**_body(PATHS[0], canary, True), "messages": [{"role": "user", "content": canary["crash"]}]}
    response = await _ask(gateway, key, PATHS[0], crash)
    tally.expect(response is not None and response.status == 503, f"a crash is answered {response}")
    if response is not None:
        yield response


def _body(path: str, canary: dict[str, str], stream: bool) -> dict[str, Any]:
    shared: dict[str, Any] = {"model": MODEL, "stream": stream, "temperature": 0}
    messages = [{"role": "user", "content": canary["prompt"]}]
    match path:
        case "/v1/completions":
            return {**shared, "prompt": canary["prompt"], "max_tokens": TOKENS, "user": canary["user"]}
        case "/v1/responses":
            return {**shared, "input": canary["prompt"], "max_output_tokens": TOKENS, "user": canary["user"]}
        case "/v1/messages":
            return {**shared, "messages": messages, "max_tokens": TOKENS, "metadata": {"user_id": canary["user"]}}
        case _:
            tool = {"type": "function", "function": {"name": canary["tool"], "parameters": {"type": "object"}}}
            return {**shared, "messages": messages, "max_tokens": TOKENS, "user": canary["user"], "tools": [tool]}


async def _ask(gateway: GatewayProcess, key: str, path: str, body: Any, *lines: str) -> Response | None:
    return await gateway.answer(post(path, key, body, *lines), DEADLINE_S)


async def _until_served(gateway: GatewayProcess, key: str, tally: Tally) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}

    async def is_served() -> bool:
        response = await _ask(gateway, key, PATHS[0], body)
        return response is not None and response.status == 200

    tally.expect(await until(is_served, DEADLINE_S) is not None, "a new key, or a new launch, is not served")


async def _revoked(gateway: GatewayProcess, key: str, tally: Tally) -> float:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}

    async def is_refused() -> bool:
        response = await _ask(gateway, key, PATHS[0], body)
        return response is not None and response.status == 401

    took_s = await until(is_refused, DEADLINE_S)
    tally.expect(took_s is not None, "a revoked key works on")
    return DEADLINE_S if took_s is None else took_s


def _everywhere(gateway: GatewayProcess, shown: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """All that we write and show: files, what processes tell the system, metrics, events, stories, errors."""
    for path in gateway.state.root.rglob("*"):
        if path.is_file():
            yield f"the file {path.relative_to(gateway.state.root)}", path.read_bytes()
    for name in ("cmdline", "environ", "comm"):
        yield f"/proc/PID/{name} of the gateway", Path(f"/proc/{gateway.pid}/{name}").read_bytes()
    yield "a name of an open file", "\n".join(_open_files(gateway.pid)).encode()
    records = gateway.records()
    metrics = Metrics()
    metrics.count(records)
    yield "the metrics", metrics.render()
    for record in records:
        yield "a story", encode(tell(record, "campaign"))
        for kind in KINDS:
            yield f"an {kind} event", b"\n".join(encode(event) for event in events_of(record, kind))
    for body in shown:
        yield "an error", body


def _open_files(pid: int) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue


ROW = Row(
    key="36",
    name="what a request says stays with it",
    claim="Keys, right and wrong, prompts, answers, users, tools, header fields, queries, field names, wrong values, "
    "broken bodies and a prompt that killed its engine are found in no file of ours, no metric, event, story or error "
    "and in nothing that our process tells the system; what is said in an open debug window is found, and only there; "
    "a revoked key works no more within 1 s.",
    unit="canaries",
    full=42,
    short=14,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=5,
)
