"""Clients that send their head, or their body, or read their answer as slowly as they can, by the thousand."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine

from modelyard.selftest.asking import ask
from modelyard.selftest.bench import MODEL, Bench, deployment, replica
from modelyard.selftest.connection import chat, post
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row
from modelyard.selftest.wire import RecordingEngine

CLOSED_WITHIN_S = 15.0
GIVEN_UP_AFTER_S = 60.0
SEND_EVERY_S = 1.0
ASK_EVERY_S = 0.1
# More than the kernel and the gateway hold of an answer for a client that does not read.
LONG_TEXT = "x" * 300_000
KINDS = ("head", "body", "read")

Sender = Callable[[GatewayProcess, int], Coroutine[None, None, float]]


async def run(bench: Bench) -> Outcome:
    tally = Tally()
    async with RecordingEngine(str(bench.state.sockets / "engine.sock"), _answer) as engine:
        places = bench.size + 64
        gateway = await bench.gateway(deployment(replica(engine.address, max_in_flight=places)))
        solo_ms = [await _legitimate_ms(gateway, tally) for _ in range(30)]
        stop = asyncio.Event()
        legitimate = asyncio.create_task(_ask_on(gateway, tally, stop))
        slow = [_slow(gateway, KINDS[number % len(KINDS)], number) for number in range(bench.size)]
        for kind, took_s in await asyncio.gather(*slow):
            tally.saw(f"closed while slow in {kind}")
            tally.expect(took_s <= CLOSED_WITHIN_S, f"slow in {kind}: open for {took_s:.1f} s")
            bench.progress(tally.tried())
        stop.set()
        meanwhile_ms = await legitimate
    tally.saw("legitimate requests answered meanwhile", len(meanwhile_ms))
    tally.figure("legitimate, alone, p99", quantile(solo_ms, 0.99), "ms")
    worst = quantile(meanwhile_ms, 0.99)
    # A few milliseconds beside a thousand clients in one process are this process's own.
    bound = None if bench.short else max(2 * quantile(solo_ms, 0.99), 50.0)
    tally.figure("legitimate, meanwhile, p99", worst, "ms", at_most=bound)
    return tally.outcome()


def _answer(body: bytes) -> bytes:
    """A stream with a long text for those who want one, a short plain answer for the others."""
    if b'"stream":true' not in body.replace(b" ", b""):
        text = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"w0"},"finish_reason":"stop"}]}'
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % LONG_TEXT.encode()
    done = b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (event, done)) + b"0\r\n\r\n"


async def _slow(gateway: GatewayProcess, kind: str, number: int) -> tuple[str, float]:
    """One client; for how long it was suffered (seconds)."""
    await asyncio.sleep(number * 0.003)
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        if kind == "read":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
        began = time.monotonic()
        first = {
            "head": b"GET /health HTTP/1.1\r\nhost: gateway\r\n",
            "body": post("/v1/chat/completions", gateway.key, b" " * 100_000)[:-99_990],
            "read": post("/v1/chat/completions", gateway.key, chat(MODEL, stream=True)),
        }
        await loop.sock_sendall(sock, first[kind])
        while (waited_s := time.monotonic() - began) < GIVEN_UP_AFTER_S:
            await asyncio.sleep(SEND_EVERY_S)
            if not await _go_on(loop, sock, kind):
                break
        return kind, waited_s


async def _go_on(loop: asyncio.AbstractEventLoop, sock: socket.socket, kind: str) -> bool:
    """A few bytes more; False where the other side has ended it."""
    try:
        # What came before a reset can be read long after it: only the socket itself knows.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        if kind == "read":
            return bool(await asyncio.wait_for(loop.sock_recv(sock, 10), 1.0))
        await loop.sock_sendall(sock, b"x-a: b\r\n" if kind == "head" else b" ")
        try:
            while heard := sock.recv(4096):  # it may have been told why
                assert heard
            return False
        except BlockingIOError:
            return True
    except TimeoutError:
        return True
    except (ConnectionError, OSError):
        return False


async def _ask_on(gateway: GatewayProcess, tally: Tally, stop: asyncio.Event) -> list[float]:
    took_ms: list[float] = []
    while not stop.is_set():
        took_ms.append(await _legitimate_ms(gateway, tally))
        await asyncio.sleep(ASK_EVERY_S)
    return took_ms


async def _legitimate_ms(gateway: GatewayProcess, tally: Tally) -> float:
    asked = await ask(gateway, chat(MODEL, tokens=1), within_s=10.0, expected="w0")
    tally.expect(asked.verdict == "whole", f"a legitimate request: {asked.verdict}: {asked.detail}")
    return asked.took_s * 1e3


ROW = Row(
    key="33",
    name="clients that are as slow as they can be",
    claim="Whoever sends a head or a body, or reads an answer, at a few bytes a second is cut off within 15 s; every "
    "legitimate request meanwhile is answered, its p99 at most twice what it is alone (or 50 ms).",
    unit="connections",
    full=1000,
    short=30,
    run=run,
    sources=("gateway",),
    takes_s=20,
)
