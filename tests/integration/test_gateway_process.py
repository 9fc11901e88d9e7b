"""The gateway as a process: what it follows, how it ends, what it leaves behind, and how much it holds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_child import KEY, MODEL, Gateway, Wire, deployment, post, replica

from modelyard.records.base import encode
from modelyard.records.keys import KeyRevoked, Scopes
from modelyard.records.secrets import public_id
from modelyard.records.topology import Topology
from modelyard.state import StateDirectory, write_atomically
from modelyard.testing import FakeEngine
from needs import needs_program

Eventually = Callable[..., Awaitable[object]]
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
READY = b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def gateway(state: StateDirectory) -> Iterator[Gateway]:
    with Gateway(state) as running:
        yield running


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "count"}], **fields}).encode()


def status_of(gateway: Gateway, request: bytes) -> int:
    with gateway.wire() as wire:
        return wire.ask(request).status


# On the wire.


def test_a_wrong_key_is_told_while_its_body_is_still_on_its_way(gateway: Gateway) -> None:
    with gateway.wire() as wire:
        wire.send(post(b"x" * 100_000, key="wrong", announced=5_000_000))
        wire.send(b"x" * 900_000)
        response = wire.response()
        assert (response.status, response.headers["connection"]) == (401, "close")
        assert wire.at_end()


def test_what_is_no_http_is_told_so_and_the_connection_ends(gateway: Gateway) -> None:
    for said in (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"):
        with gateway.wire() as wire:
            assert wire.ask(said).status == 400
            assert wire.at_end()


def test_no_slow_sender_holds_a_connection_for_longer_than_it_may(gateway: Gateway, tmp_path: Path) -> None:
    """The real limits are seconds: here the sweep is shown to find whoever is over a limit made small."""
    script = tmp_path / "small_limits.py"
    script.write_text(
        "import dataclasses, sys\n"
        "from modelyard.gateway import limits\n"
        "limits.WIRE = dataclasses.replace(limits.WIRE, head_timeout_s=0.1, body_timeout_s=0.1, idle_timeout_s=0.1)\n"
        "from modelyard.gateway.__main__ import main\n"
        "main()\n"
    )
    gateway.kill()
    os.close(gateway.lifeline)
    gateway.start(program=[str(script)])
    with gateway.wire() as slow_head, gateway.wire() as slow_body, gateway.wire() as idle, gateway.wire() as silent:
        slow_head.send(b"GET /health HTTP/1.1\r\nho")
        slow_body.send(post(b"{", announced=100))
        assert idle.ask(HEALTH).status == 200
        assert slow_head.response().status == 408
        assert slow_body.response().status == 408
        for wire in (slow_head, slow_body, idle, silent):
            assert wire.at_end()


# What it follows.


async def test_the_topology_is_followed(gateway: Gateway, eventually: Eventually) -> None:
    async with FakeEngine() as engine:
        assert status_of(gateway, READY) == 503
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: status_of(gateway, READY) == 200)
        assert status_of(gateway, post(chat(max_tokens=1))) == 200

        gateway.publish(deployment(open=False, reason="verification is red", retry_after_s=11))
        await eventually(lambda: status_of(gateway, READY) == 503)
        with gateway.wire() as wire:
            response = wire.ask(post(chat()))
        assert (response.status, response.headers["retry-after"]) == (503, "11")
        assert b"verification is red" in response.body

        gateway.publish(deployment(replica(engine.address), name="other"))
        await eventually(lambda: status_of(gateway, post(chat(model="other", max_tokens=1))) == 200)
        assert status_of(gateway, post(chat())) == 404


async def test_only_a_newer_readable_topology_counts(gateway: Gateway, eventually: Eventually) -> None:
    async with FakeEngine() as engine:
        gateway.publish()
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: status_of(gateway, READY) == 200)
        write_atomically(gateway.state.topology, encode(Topology(generation=1)))
        for unusable in (
            b"{",
            b'{"schema":"topology/v9"}',
            encode(Topology(generation=9, deployments=(deployment(replica("ftp://x")),))),
        ):
            told = gateway.printed()
            write_atomically(gateway.state.topology, unusable)
            await eventually(lambda told=told: gateway.printed() != told, what="a word about the file")
            assert status_of(gateway, post(chat(max_tokens=1))) == 200
        gateway.generation = 20
        gateway.publish()
        await eventually(lambda: status_of(gateway, READY) == 503)


async def test_a_new_launch_takes_over_while_the_old_one_finishes(gateway: Gateway, eventually: Eventually) -> None:
    async with FakeEngine(token_interval_s=0.02) as old, FakeEngine() as new:
        gateway.publish(deployment(replica(old.address)))
        await eventually(lambda: status_of(gateway, READY) == 200)
        with gateway.wire() as streaming:
            streaming.send(post(chat(stream=True, max_tokens=50)))
            assert b"200 OK" in streaming.read_some()
            gateway.publish(deployment(replica(new.address, launch="l1")))
            await eventually(lambda: _launch_of_the_next(gateway) == "l1")
            rest = b""
            while b"[DONE]" not in rest:
                rest += streaming.read_some()
    assert {(record.launch, record.outcome) for record in gateway.records()} == {("l0", "complete"), ("l1", "complete")}


def _launch_of_the_next(gateway: Gateway) -> str:
    before = {record.request_id for record in gateway.records()}
    assert status_of(gateway, post(chat(max_tokens=1))) == 200
    return next(r.launch for r in gateway.records() if r.request_id not in before and not r.stream)


async def test_a_draining_replica_gets_nothing_new(gateway: Gateway, eventually: Eventually) -> None:
    async with FakeEngine() as one, FakeEngine() as two:
        gateway.publish(deployment(replica(one.address, "one", draining=True), replica(two.address, "two")))
        await eventually(lambda: status_of(gateway, READY) == 200)
        for _ in range(4):
            assert status_of(gateway, post(chat(max_tokens=1))) == 200
        assert (await one.seen())["requests"] == []


async def test_keys_are_followed(gateway: Gateway, eventually: Eventually) -> None:
    models = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n"
    gateway.publish(deployment(), deployment(name="other"))
    with gateway.wire() as open_connection:
        assert open_connection.ask(models % KEY.encode()).status == 200
        gateway.add_key("second", Scopes(deployments=("other",)))
        await eventually(lambda: status_of(gateway, models % b"second") == 200)
        gateway.log_key(KeyRevoked(id=public_id(KEY), at=time.time()))
        await eventually(lambda: status_of(gateway, models % KEY.encode()) == 401)
        assert open_connection.ask(models % KEY.encode()).status == 401


# How it ends.


async def test_a_first_signal_lets_streams_end_and_closes_idle_connections(
    gateway: Gateway, eventually: Eventually
) -> None:
    async with FakeEngine(token_interval_s=0.02) as engine:
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: status_of(gateway, READY) == 200)
        with gateway.wire() as streaming, gateway.wire() as idle:
            assert idle.ask(HEALTH).status == 200
            streaming.send(post(chat(stream=True, max_tokens=30)))
            assert b"200 OK" in streaming.read_some()
            gateway.terminate()
            assert idle.at_end()
            rest = b""
            while data := streaming.read_some():
                rest += data
            assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert gateway.process.wait(20) == 0
    assert [record.outcome for record in gateway.records()] == ["complete"]


async def test_a_second_signal_means_now(gateway: Gateway, eventually: Eventually) -> None:
    async with FakeEngine(token_interval_s=0.05, tokens=5000) as engine:
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: status_of(gateway, READY) == 200)
        with gateway.wire() as streaming, gateway.wire() as idle:
            assert idle.ask(HEALTH).status == 200
            streaming.send(post(chat(stream=True, max_tokens=5000)))
            assert b"200 OK" in streaming.read_some()
            gateway.terminate()
            assert idle.at_end(), "the first signal was heard"
            gateway.terminate()
            rest = b""
            while data := streaming.read_some():
                rest += data
            assert b"gateway_stopped" in rest and b"[DONE]" not in rest, "the client is told"
        assert gateway.process.wait(20) == 0
    assert [record.outcome for record in gateway.records()] == ["gateway_stopped"]


def test_the_gateway_ends_with_whoever_holds_its_lifeline(gateway: Gateway) -> None:
    os.close(gateway.lifeline)
    gateway.process.wait(20)
    gateway.lifeline = os.open(os.devnull, os.O_RDONLY)


async def test_every_answer_that_was_received_stands_in_the_journal_after_a_kill(
    gateway: Gateway, eventually: Eventually
) -> None:
    async with FakeEngine(token_interval_s=0.002) as engine:
        gateway.publish(deployment(replica(engine.address)))
        await eventually(lambda: status_of(gateway, READY) == 200)
        received: list[str] = []
        for _ in range(3):
            stop = asyncio.Event()
            clients = [asyncio.create_task(_ask_on(gateway, received, stop, stream=bool(n % 2))) for n in range(12)]
            wanted = len(received) + 60
            await eventually(lambda wanted=wanted: len(received) >= wanted)
            gateway.kill()
            os.close(gateway.lifeline)
            gateway.start()
            stop.set()
            await asyncio.gather(*clients)
            await eventually(lambda: status_of(gateway, READY) == 200)
    recorded = [record.request_id for record in gateway.records() if record.outcome == "complete"]
    assert len(recorded) == len(set(recorded)), "once each"
    assert set(received) <= set(recorded)
    assert len(set(recorded) - set(received)) <= 3 * 12, "more than was in flight"


async def _ask_on(gateway: Gateway, received: list[str], stop: asyncio.Event, *, stream: bool) -> None:
    """One request after the other until the gateway is gone; notes those that were answered to the last byte."""
    ask: Any = {"model": MODEL, "messages": [{"role": "user", "content": "count"}], "max_tokens": 8}
    async with gateway.client() as client:
        try:
            while not stop.is_set():
                raw = await client.chat.completions.with_raw_response.create(**ask, stream=stream)
                request_id = raw.headers["x-request-id"]
                if stream:
                    done = [event async for event in raw.parse()]
                    assert done[-1].choices[0].finish_reason == "length"
                received.append(request_id)
        except Exception as error:  # the client's own or its HTTP library's: an answer that was cut, or none
            if not type(error).__module__.startswith(("http", "openai")):
                raise


# How much it holds.


async def test_a_client_that_does_not_read_costs_no_memory(gateway: Gateway, eventually: Eventually) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    gateway.publish(deployment(replica(f"http://127.0.0.1:{listener.getsockname()[1]}")))
    await eventually(lambda: status_of(gateway, READY) == 200)
    before = gateway.rss_bytes()
    with gateway.wire() as client, listener:
        client.send(post(chat(stream=True)))
        engine, _ = await loop.sock_accept(listener)
        with engine:
            await loop.sock_recv(engine, 65_536)
            event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 64_000)
            chunk = b"%x\r\n%b\r\n" % (len(event), event)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            sent = await _send_until_stuck(loop, engine, head, chunk, most=200_000_000)
            assert sent < 100_000_000, "the engine's side was never held back"
            assert gateway.rss_bytes() - before < 20_000_000
            assert status_of(gateway, HEALTH) == 200
            # Whoever begins to read gets all of it (the framing of chunks may differ).
            left = sent // len(chunk) * 64_000
            client.socket.setblocking(False)
            while left > 0:
                left -= (await asyncio.wait_for(loop.sock_recv(client.socket, 1_048_576), 20)).count(b"x")


async def _send_until_stuck(
    loop: asyncio.AbstractEventLoop, engine: socket.socket, head: bytes, chunk: bytes, *, most: int
) -> int:
    """Sends whole chunks until the other side takes no more; the bytes of those that went out entirely."""
    await loop.sock_sendall(engine, head)
    sent = 0
    while sent < most:
        try:
            await asyncio.wait_for(loop.sock_sendall(engine, chunk), 1.0)
        except TimeoutError:
            break
        sent += len(chunk)
    return sent


# As a command.


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "modelyard", "gateway", "--model", MODEL, *arguments]


def test_a_taken_port_is_a_sentence_and_exit_code_8() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command("--upstream", "unix:/x", "--port", port, "--key", "k"), capture_output=True, text=True, check=False
        )
    assert done.returncode == 8
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--upstream", "ftp://x", "--key", "k"], 2),
        (["--upstream", "http://host/path", "--key", "k"], 2),
        (["--upstream", "unix:/x"], 2),
        (["--upstream", "unix:/x", "--key", "k", "--tls-cert", "x"], 2),
        (["--upstream", "unix:/x", "--key", "k", "--host", "0.0.0.0"], 8),
    ],
)
def test_a_command_that_cannot_be_is_refused_in_words(arguments: list[str], code: int) -> None:
    done = subprocess.run(command("--port", "0", *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = needs_program("openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
async def tls_port(certificate: Path, tmp_path: Path, eventually: Eventually) -> AsyncIterator[int]:
    """Where a gateway started by hand listens, with TLS, before an engine that knows capitals."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with FakeEngine() as engine:
        arguments = ["--upstream", engine.address, "--engine-model", "fake", "--port", str(port), "--key", KEY]
        arguments += ["--tls-cert", str(certificate / "cert.pem"), "--tls-key", str(certificate / "key.pem")]
        process = await asyncio.create_subprocess_exec(*command(*arguments, "--state", str(tmp_path / "s")))
        await eventually(lambda: _accepts(port) or process.returncode is not None)
        yield port
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_the_command_serves_over_tls(certificate: Path, tls_port: int) -> None:
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    url = f"https://localhost:{tls_port}/v1"
    async with (
        openai.DefaultAsyncHttpxClient(verify=context) as http,
        openai.AsyncOpenAI(base_url=url, api_key=KEY, http_client=http, max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "the capital of Japan"}], stream=True
        )
        text = "".join([event.choices[0].delta.content or "" async for event in stream])
    assert "Tokyo" in text


def test_nothing_is_said_without_tls_where_tls_is_asked_for(tls_port: int) -> None:
    with Wire(("127.0.0.1", tls_port)) as plain:
        plain.send(HEALTH)
        assert plain.at_end()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
