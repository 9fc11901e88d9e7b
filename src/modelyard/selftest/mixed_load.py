"""Mixed traffic from clients that remember what each was told: every kind of request, each of them its own."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelyard.selftest.bench import MODEL
from modelyard.selftest.connection import Connection, Lost
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Tally

DEADLINE_S = 60.0
MOST_TOKENS = 4
# Numbers of one width, so that a request's head is made once.
NUMBER = "%08d"


@dataclass(frozen=True, slots=True)
class Told:
    """What a client received to its end: by which key (its place), with which status, and how many tokens."""

    key: int
    status: int
    tokens: int


@dataclass(frozen=True)
class Kind:
    """`template` is a whole request with a NUMBER in it; a good one is answered with `tokens`, a `bad` one refused.
    Who `leaves` does so as soon as the request is sent."""

    template: bytes
    key: int
    tokens: int
    bad: bool = False
    leaves: bool = False


@dataclass
class Heard:
    """`told` by request id; `lost` counts connections that ended first, `left` clients that did not wait."""

    told: dict[str, Told] = field(default_factory=dict[str, Told])
    lost: int = 0
    left: int = 0


def kinds(secrets: Sequence[str]) -> tuple[Kind, ...]:
    """All kinds for all keys, each as often as it is to be asked."""
    found: list[Kind] = []
    for key, secret in enumerate(secrets):
        for tokens in range(1, MOST_TOKENS + 1):
            for stream in (False, False, False, True):
                found += [Kind(_request(path, secret, body), key, tokens) for path, body in _bodies(tokens, stream)]
        path, body = next(_bodies(1, False))
        found += [Kind(_request(path, secret, {**body, "model": "unknown"}), key, 0, bad=True)] * 3
        found += [Kind(_request(path, secret, {**body, "temperature": "hot"}), key, 0, bad=True)] * 3
        found += [Kind(_request(path, secret, {**body, "stream": True}), key, 1, leaves=True)] * 2
    return tuple(found)


def _bodies(tokens: int, stream: bool) -> Any:
    text = f"question {NUMBER}"
    messages, shared = [{"role": "user", "content": text}], {"model": MODEL, "stream": stream}
    for _ in range(3):
        yield "/v1/chat/completions", {**shared, "messages": messages, "max_tokens": tokens}
    yield "/v1/completions", {**shared, "prompt": text, "max_tokens": tokens}
    yield "/v1/messages", {**shared, "messages": messages, "max_tokens": tokens}
    yield "/v1/responses", {**shared, "input": text, "max_output_tokens": tokens}


def _request(path: str, secret: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body)
    length = len(data) - len(NUMBER) + len(NUMBER % 0)
    head = [f"POST {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {secret}"]
    head += ["content-type: application/json", f"content-length: {length}", "", ""]
    return ("\r\n".join(head) + data).encode()


async def ask_all(
    gateway: GatewayProcess,
    choices: Sequence[Kind],
    count: int,
    *,
    clients: int,
    rng: random.Random,
    tally: Tally,
    on_asked: Callable[[int], None],
) -> Heard:
    """`count` requests by so many clients; `on_asked` hears the number of each before it is sent."""
    heard, numbers = Heard(), iter(range(count))

    async def ask_on(dice: random.Random) -> None:
        connection: Connection | None = None
        for number in numbers:
            on_asked(number)
            if connection is None or not connection.open:
                connection = await gateway.connect()
            connection = await _ask(connection, dice.choice(choices), number, heard, tally)
        if connection is not None:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask_on(random.Random(rng.random())))
    return heard


async def _ask(connection: Connection, kind: Kind, number: int, heard: Heard, tally: Tally) -> Connection | None:
    """The connection for the next request; None where it is not to be used again."""
    request = kind.template % number
    if kind.leaves:
        connection.send(request)
        await asyncio.sleep(0)
        connection.close()
        heard.left += 1
        return None
    try:
        response = await connection.ask(request, DEADLINE_S)
    except TimeoutError:
        tally.wrong(f"request {number}: no end within {DEADLINE_S:g} s")
        connection.close()
        return None
    except Lost:
        heard.lost += 1
        return None
    status, request_id = response.status, response.headers.get("x-request-id", "")
    allowed = (400, 404) if kind.bad else (200, 503)
    tally.expect(status in allowed and request_id != "", f"request {number}: {status}: {response.body[:200]!r}")
    cut = status == 200 and b'"error"' in response.body[-400:]
    tally.saw(f"told {status}{', cut' if cut else ''}")
    # How much of an answer that was cut is accounted cannot be told from here.
    heard.told[request_id] = Told(kind.key, status, -1 if cut else kind.tokens if status == 200 else 0)
    return connection
