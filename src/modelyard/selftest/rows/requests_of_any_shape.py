"""Requests of any shape to every endpoint: no answer is a server's error, and each has the form that it should."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from modelyard.selftest import request_fuzz
from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.connection import Connection, Lost, Response, post
from modelyard.selftest.endings import error_problem
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.request_fuzz import Request
from modelyard.selftest.row import Row

SEEDS, CLIENTS = 3, 16
DEADLINE_S = 30.0
# 501: this engine does not have that endpoint, and nothing of ours can stand for it.
REFUSALS = frozenset((400, 404, 413, 415, 422, 501))


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    engine = await bench.engine(tokens=8)
    gateway = await bench.gateway(deployment(replica(engine), engine="fake"))
    share = -(-bench.size // SEEDS)
    for seed in range(SEEDS):
        numbers = iter(range(share))
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                rng = random.Random(f"{bench.seed} {seed} {client}")
                group.create_task(_ask_on(gateway, numbers, rng, tally, bench))
    tally.expect(gateway.exit_code is None, "the gateway has ended")
    tally.expect(engine.exit_code is None, "the engine has ended")
    tally.expect("Traceback" not in gateway.printed(), f"the gateway printed {gateway.printed()[-300:]}")
    return tally.outcome()


async def _ask_on(gateway: GatewayProcess, numbers: Any, rng: random.Random, tally: Tally, bench: Bench) -> None:
    connection: Connection | None = None
    for _ in numbers:
        request = request_fuzz.made(rng)
        if connection is None or not connection.open:
            connection = await gateway.connect()
        try:
            response = await connection.ask(post(request.path, gateway.key, request.body), DEADLINE_S)
        except (Lost, TimeoutError) as error:
            tally.wrong(f"{request.path}: {type(error).__name__} {error}: {request.body[:300]!r}")
            connection.close()
        else:
            tally.saw(f"{'sound' if request.sound else 'any shape'}: {response.status}")
            if problem := _problem(request, response):
                tally.wrong(f"{request.path}: {problem}: {request.body[:300]!r}")
        if tally.tried() % 100 == 0:
            bench.progress(tally.tried(0))
    if connection is not None:
        connection.close()


def _problem(request: Request, response: Response) -> str:
    """What is wrong with the answer; empty where nothing is."""
    status, kind = response.status, response.headers.get("content-type", "")
    if request.sound and status != 200:
        return f"a sound request is answered {status}: {response.body[:200]!r}"
    try:
        if status == 200:
            return (
                _stream_problem(request.path, response)
                if "event-stream" in kind
                else _answer_problem(request, response)
            )
        if status not in REFUSALS:
            return f"status {status}: {response.body[:200]!r}"
        if not kind.startswith("application/json"):
            return f"{status} with type {kind!r}"
        value = response.json()
        if request.path.startswith("/v1/messages"):
            return "" if value["type"] == "error" and value["error"]["message"] else f"no error of Anthropic's: {value}"
        return error_problem(value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"{status}: {type(error).__name__} {error}: {response.body[:200]!r}"


def _answer_problem(request: Request, response: Response) -> str:
    value = response.json()
    match request.path:
        case "/v1/chat/completions":
            is_right = isinstance(value["choices"][0]["message"]["content"], str) and "usage" in value
        case "/v1/completions":
            is_right = isinstance(value["choices"][0]["text"], str) and "usage" in value
        case "/v1/messages":
            is_right = value["type"] == "message" and isinstance(value["content"], list) and "usage" in value
        case "/v1/responses":
            is_right = value["object"] == "response" and isinstance(value["output"], list) and "usage" in value
        case _:
            is_right = isinstance(value, dict)
    return "" if is_right else f"an answer of another form: {response.body[:200]!r}"


def _stream_problem(path: str, response: Response) -> str:
    """Every event holds JSON, and the last one is the end that this dialect has."""
    data = [line[5:].strip() for event in response.events() for line in event.split(b"\n") if line.startswith(b"data:")]
    values = [json.loads(one) for one in data if one != b"[DONE]"]
    ends = {"/v1/messages": "message_stop", "/v1/responses": "response."}
    if path in ends:
        return "" if str(values[-1]["type"]).startswith(ends[path]) else f"ends with {data[-1][:200]!r}"
    return "" if data[-1] == b"[DONE]" else f"ends with {data[-1][:200]!r}"


ROW = Row(
    key="31",
    name="requests of any shape",
    claim="Of requests to every endpoint, half of them sound and half with values spoilt by chance (three seeds), no "
    "answer is a server's error but 501 for what the engine lacks, every sound one is answered, and each answer and "
    "each error has the form of its dialect.",
    unit="requests",
    full=21_000,
    short=900,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=10,
)
