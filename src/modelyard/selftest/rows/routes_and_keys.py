"""Every route with every method, key and Host: what is open is what the route table says, and nothing else is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from modelyard.gateway.routes import ROUTES, Route
from modelyard.records.keys import KeyCreated, KeyRevoked, Scopes
from modelyard.records.secrets import key_record, new_key
from modelyard.selftest.bench import MODEL, Bench, deployment, replica, until
from modelyard.selftest.cases.hosts import BAD_HOSTS, GOOD_HOSTS
from modelyard.selftest.connection import Lost, chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row
from modelyard.selftest.wire import RecordingEngine, say

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "LOCK", "QUERY")
# Paths that are no route, however near to one: some of them open doors elsewhere.
NO_ROUTES = (
    *(
        "/",
        "/v1",
        "/v1/",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/debug",
        "/admin",
        "/admin/keys",
        "/invocations",
        "/pause",
    ),
    *(
        "/update_weights",
        "/collective_rpc",
        "/v1/models/",
        "//health",
        "/health/",
        "/Health",
        "/health%20",
        "/%68ealth",
    ),
    *("/x/../health", "/./health", "/health;/v1/models", "/v1/models/../../health", "/.env", "/proc/self/environ"),
    *("/v1//models", "/v1/%6dodels", "/v1/chat/completions/", "/V1/chat/completions", "/health\\..\\v1\\models"),
)
CREDENTIALS = ("none", "empty", "wrong", "basic", "twice", "expired", "revoked", "narrow", "good")


@dataclass(frozen=True, slots=True)
class Cell:
    """One request; `statuses` are those that the declared policy allows."""

    method: str
    path: str
    credential: str
    host: bytes
    statuses: frozenset[int]


def cells() -> Iterator[Cell]:
    for route in ROUTES:
        path = route.endpoint + (MODEL if route.kind == "model" else "")
        for method in METHODS:
            for credential in CREDENTIALS:
                yield Cell(method, path, credential, b"gateway", _allowed(route, method, credential))
        for host in GOOD_HOSTS:
            for credential in ("none", "wrong", "good"):
                allowed = _allowed(route, route.method, credential)
                yield Cell(route.method, path, credential, host, allowed)
        for host in BAD_HOSTS:
            yield Cell(route.method, path, "none", host, frozenset({400}))
    for path in NO_ROUTES:
        for method in METHODS[:3]:
            yield Cell(method, path, "good", b"gateway", frozenset({404, 405}))


def _allowed(route: Route, method: str, credential: str) -> frozenset[int]:
    """What may be answered. A route that is not open to all never answers more than 401 without a good key."""
    same_path = {one.method for one in ROUTES if one.endpoint == route.endpoint}
    if method not in same_path:
        return frozenset({400, 405})  # some methods are not HTTP's to the parser
    if route.open_to_all:
        return frozenset({200})
    if credential == "good":
        # What has a body is asked with one for chat: other endpoints refuse its fields.
        return frozenset({200, 400, 404, 501}) if route.kind not in ("models", "model") else frozenset({200})
    if credential == "narrow":
        return frozenset({403, 404, 400}) if route.kind not in ("models", "model") else frozenset({200, 404})
    return frozenset({401})


async def run(bench: Bench) -> Outcome:
    tally, every = Tally(), list(cells())
    bench.rng.shuffle(every)
    async with RecordingEngine(str(bench.state.sockets / "engine.sock")) as engine:
        gateway = await bench.gateway(deployment(replica(engine.address)))
        lines = _credentials(gateway)
        known = b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n%b\r\n" % lines["narrow"]
        await until(lambda: _is_answered(gateway, known), 10.0)
        for cell in every[: bench.size]:
            await _try(gateway, cell, lines[cell.credential], tally)
            reached = bool(engine.take())
            tally.expect(not reached or cell.credential == "good", f"{cell}: reached the engine")
            bench.progress(tally.tried())
    return tally.outcome()


def _credentials(gateway: GatewayProcess) -> dict[str, bytes]:
    """Header lines by credential; the narrow key is the last of them to be known."""
    expired = new_key("expired", time.time())
    gateway.log_key(KeyCreated(key=key_record(expired.secret, "expired", time.time() - 10, time.time() - 5)))
    revoked = gateway.add_key("revoked")
    gateway.log_key(KeyRevoked(id=revoked.record.id, at=time.time()))
    narrow = gateway.add_key("narrow", scopes=Scopes(deployments=("another",)))
    bearer = b"authorization: Bearer %b\r\n"
    good = bearer % gateway.key.encode()
    return {
        "none": b"",
        "empty": b"authorization:\r\n",
        "wrong": bearer % b"my_000000000000_wrong",
        "basic": b"authorization: Basic bXk6c2VjcmV0\r\n",
        "twice": good + bearer % b"my_000000000000_wrong",
        "expired": bearer % expired.secret.encode(),
        "revoked": bearer % revoked.secret.encode(),
        "narrow": bearer % narrow.secret.encode(),
        "good": good,
    }


async def _is_answered(gateway: GatewayProcess, request: bytes) -> bool:
    return (await say(gateway.port, request)).statuses == (200,)


async def _try(gateway: GatewayProcess, cell: Cell, credential: bytes, tally: Tally) -> None:
    body = post("", "", chat(MODEL, tokens=1)).partition(b"\r\n\r\n")[2] if cell.method == "POST" else b""
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n" % (
        cell.method.encode(),
        cell.path.encode(),
        cell.host,
    )
    framing = b"content-length: %d\r\n" % len(body) if body else b""
    try:
        heard = await say(gateway.port, head + credential + framing + b"\r\n" + body, head=cell.method == "HEAD")
    except (TimeoutError, Lost) as error:
        tally.wrong(f"{cell}: {type(error).__name__} {error}")
        return
    status = heard.statuses[0] if heard.statuses else 0
    tally.saw(str(status))
    tally.expect(status in cell.statuses, f"{cell.method} {cell.path} host={cell.host!r} {cell.credential}: {status}")


ROW = Row(
    key="34",
    name="routes, keys, methods and Hosts",
    claim="Every cell of route by method by key answers what the route table declares and nothing looser; no Host, "
    f"good or one of {len(BAD_HOSTS)} bad ones, moves a request to another route or past its key; paths that are no "
    "route do not exist.",
    unit="cells",
    full=len(list(cells())),
    short=600,
    run=run,
    sources=("gateway",),
    takes_s=5,
)
