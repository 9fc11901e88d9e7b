"""Addresses in every field of every request: a gateway that fetches one is somebody else's browser."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelyard.selftest import request_fuzz
from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.canary import Canary
from modelyard.selftest.connection import Connection, Lost, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally
from modelyard.selftest.row import Row

DEADLINE_S = 20.0
LOOK_EVERY = 50
_SCHEMES = ("http", "https", "HTTP", "ftp", "gopher", "dict", "ws")
_HOSTS = (
    *("127.0.0.1", "localhost", "LOCALHOST.", "127.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0177.0.0.1"),
    *("[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "①②⑦.0.0.1", "127。0。0。1", "user@127.0.0.1"),
    *("example.invalid@127.0.0.1", "127.0.0.1\\@example.invalid", "169.254.169.254", "[fd00:ec2::254]"),
)
_WHOLE = (
    *(
        "file:///etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "//127.0.0.1:{port}/",
        "\\\\127.0.0.1\\share",
        "unix:/run/x",
    ),
    *(
        "http:127.0.0.1:{port}/",
        "http:/127.0.0.1:{port}/",
        "http:\\\\127.0.0.1:{port}\\",
        "jar:http://127.0.0.1:{port}!/",
    ),
    *(
        "http://127.0.0.1:{port}/redirect?to=file:///etc/passwd",
        "http://%31%32%37.0.0.1:{port}/",
        "netdoc:///etc/passwd",
    ),
    *("data:text/html,<script src=http://127.0.0.1:{port}/>", "![x](http://127.0.0.1:{port}/x.png)"),
    *('<img src="http://127.0.0.1:{port}/">', "http://127.0.0.1:{port}\r\nhost: x", " http://127.0.0.1:{port}/ "),
)


def forms(port: int) -> tuple[str, ...]:
    """Ways to write an address, most of them of the canary."""
    joined = [f"{scheme}://{host}:{port}/" for scheme, host in itertools.product(_SCHEMES[:1], _HOSTS)]
    joined += [f"{scheme}://{host}:{port}/x" for scheme, host in itertools.product(_SCHEMES[1:], _HOSTS[:9])]
    return (*joined, *(whole.format(port=port) for whole in _WHOLE))


def bodies(form: str, rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """The form in each place of each endpoint's request that holds a text, and in fields that invite a fetch."""
    for path in request_fuzz.PATHS:
        value = request_fuzz.base(path, rng, every_field=True)
        for place in request_fuzz.text_places(value):
            yield path, request_fuzz.with_text(value, place, form)
        for name in ("api_base", "base_url", "url", "image_url", "webhook", "callback_url", "file", "tool_resources"):
            yield path, {**value, name: form}
    for part in _parts(form):
        message = [{"role": "user", "content": [part]}]
        yield "/v1/chat/completions", {"model": MODEL, "messages": message}
        yield "/v1/messages", {"model": MODEL, "messages": message, "max_tokens": 1}
        yield "/v1/responses", {"model": MODEL, "input": message}


def _parts(form: str) -> Iterator[dict[str, Any]]:
    yield {"type": "image_url", "image_url": {"url": form}}
    yield {"type": "image_url", "image_url": form}
    yield {"type": "input_image", "image_url": form}
    yield {"type": "image", "source": {"type": "url", "url": form}}
    yield {"type": "document", "source": {"type": "url", "url": form}}
    yield {"type": "input_file", "file_url": form}
    yield {"type": "input_audio", "input_audio": {"data": form, "format": "wav"}}
    yield {"type": "text", "text": "x", "cache_control": form}


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    async with Canary() as canary:
        engine = await bench.engine(tokens=2)
        gateway = await bench.gateway(deployment(replica(engine)))
        chosen = list(forms(canary.port))
        bench.rng.shuffle(chosen)
        connection = await gateway.connect()
        for form in chosen[: bench.size]:
            for path, body in bodies(form, bench.rng):
                connection = await _ask(gateway, connection, path, body, tally)
                tally.saw("requests")
                if tally.counts["requests"] % LOOK_EVERY == 0:
                    _look(gateway, tally)
            bench.progress(tally.tried())
        connection.close()
        tally.saw("connections at the canary", canary.connections)
        tally.expect(canary.connections == 0, f"{canary.connections} connections at the canary")
    return tally.outcome()


async def _ask(
    gateway: GatewayProcess, connection: Connection, path: str, body: dict[str, Any], tally: Tally
) -> Connection:
    if not connection.open:
        connection = await gateway.connect()
    try:
        response = await connection.ask(post(path, gateway.key, json.dumps(body).encode()), DEADLINE_S)
    except (Lost, TimeoutError) as error:
        tally.wrong(f"{path}: {type(error).__name__} {error}: {json.dumps(body)[:300]}")
        connection.close()
        return connection
    is_well = response.status < 500 or response.status == 501
    tally.expect(is_well, f"{path} is answered {response.status}: {json.dumps(body)[:300]}")
    return connection


def _look(gateway: GatewayProcess, tally: Tally) -> None:
    """Every TCP connection of the gateway is one of its clients': none was opened by itself, to wherever."""
    inodes = {_inode(f"/proc/{gateway.pid}/fd/{name}") for name in os.listdir(f"/proc/{gateway.pid}/fd")}
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{gateway.pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            local_port = int(fields[1].rpartition(":")[2], 16)
            if fields[9] in inodes and local_port != gateway.port:
                tally.wrong(f"the gateway has opened a connection to {fields[2]}")


def _inode(path: str) -> str:
    try:
        return os.readlink(path).removeprefix("socket:[").removesuffix("]")
    except OSError:
        return ""


ROW = Row(
    key="35",
    name="addresses in every field",
    claim="Whatever address a request names, in whichever field and form, nothing is fetched: no connection reaches a "
    "listener on loopback, and the gateway opens no TCP connection to anywhere.",
    unit="forms of addresses",
    full=90,
    short=4,
    run=run,
    sources=("gateway", "testing/fake_engine.py"),
    takes_s=12,
)
