"""FaultProxy: a process between a gateway and an engine that spoils answers on purpose.

    python fault_program.py --listen unix:/path --engine unix:/path [--plan FILE.json]

Standard library only. Requests go to the engine as they came, each on a connection of its own; what comes back is
spoilt by the plan (fault_plan.py). `POST /fault/plan` sets another one, `GET /fault/seen` tells what happened to each
request under /v1/. Its log: `ready {json}` with the address once it listens."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

_MODELYARD = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_MODELYARD.parent), str(_MODELYARD / "programs")]

import http1  # noqa: E402
from http1 import BadRequest, Reply, Request  # noqa: E402
from modelyard.testing.fault_answers import response, without_engine  # noqa: E402
from modelyard.testing.fault_plan import BadPlan, Fault, Plan, read_plan  # noqa: E402
from modelyard.testing.fault_upstream import NoAnswer, asked  # noqa: E402

SEEN_REQUESTS = 20_000
# After these the connection's framing is broken or its end is the fault: a sound client never uses it again.
ENDS_CONNECTION = frozenset(("reset", "early-eof", "wrong-length"))
_SECOND_OF_BANDWIDTH = 20  # writes for each second


class _Cut(Exception):
    """The fault has ended the connection."""


class Proxy:
    """Owns the plan and what was seen."""

    def __init__(self, engine: str, plan: Plan) -> None:
        self.engine, self.plan = engine, plan
        self.connections = 0
        self.seen: deque[dict[str, object]] = deque(maxlen=SEEN_REQUESTS)

    async def handle(self, request: Request, reply: Reply, connection: int, number: int) -> None:
        if request.path == "/fault/plan":
            try:
                self.plan = read_plan(request.body)
            except BadPlan as error:
                raise BadRequest(str(error)) from None
            return reply.json(200, {})
        if request.path == "/fault/seen":
            return reply.json(200, {"requests": list(self.seen), "connections": self.connections})
        fault = self.plan.fault_for(request.path, request.body)
        seen: dict[str, object] = {"path": request.path, "fault": fault.kind, "connection": connection}
        seen |= {"number": number, "bytes": 0, "ended": "client left"}
        if request.path.startswith("/v1/"):
            self.seen.append(seen)
        wire = _Wire(reply, fault)
        try:
            seen["ended"] = await self._answer(request, fault, wire)
        finally:
            seen["bytes"] = wire.sent

    async def _answer(self, request: Request, fault: Fault, wire: _Wire) -> str:
        """In a word how it ended."""
        try:
            spoilt = without_engine(fault, stream=b'"stream":true' in request.body.replace(b" ", b""))
            if spoilt is not None:
                await wire.put(spoilt)
            else:
                await self._relay(request, fault, wire)
            if fault.kind in ENDS_CONNECTION:
                wire.reply.transport.close()
        except _Cut:
            return "cut"
        except NoAnswer as error:
            print(f"error: {error}", flush=True)
            wire.reply.transport.abort()
            return "no answer"
        return "whole"

    async def _relay(self, request: Request, fault: Fault, wire: _Wire) -> None:
        async with asked(self.engine, request) as answer:
            async for data in response(answer, fault):
                await wire.put(data)


class _Wire:
    """Where bytes leave: slowly, in slices, or not to the end."""

    def __init__(self, reply: Reply, fault: Fault) -> None:
        self.reply, self.fault = reply, fault
        self.sent = 0
        reply.started = True
        if fault.kind in ENDS_CONNECTION:
            # What was written has left before the end comes.
            reply.transport.set_write_buffer_limits(high=0)

    async def put(self, data: bytes) -> None:
        """Raises _Cut where the fault ends the connection."""
        fault = self.fault
        if fault.kind == "latency" and not self.sent:
            await asyncio.sleep(fault.delay_s)
        if fault.kind in ("reset", "early-eof", "hang") and self.sent + len(data) >= fault.at_byte:
            await self._write(data[: fault.at_byte - self.sent])
            await self._end_here()
        async for piece in self._slices(data):
            await self._write(piece)

    async def _slices(self, data: bytes) -> AsyncIterator[bytes]:
        kind = self.fault.kind
        if kind not in ("slices", "bandwidth"):
            yield data
            return
        size = self.fault.size if kind == "slices" else max(self.fault.bytes_per_s // _SECOND_OF_BANDWIDTH, 1)
        pause_s = self.fault.delay_s if kind == "slices" else size / self.fault.bytes_per_s
        for at in range(0, len(data), size):
            yield data[at : at + size]
            await asyncio.sleep(pause_s)

    async def _write(self, data: bytes) -> None:
        if data:
            self.sent += len(data)
            self.reply.transport.write(data)
            await self.reply.writable.wait()

    async def _end_here(self) -> None:
        transport, kind = self.reply.transport, self.fault.kind
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "reset":
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()
        raise _Cut


class _Connection(http1.Connection):
    """Tells the proxy which connection a request came on, and the how many-th of it it is."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(self._handle)
        self._proxy = proxy
        proxy.connections += 1
        self._mine, self._requests = proxy.connections, 0

    async def _handle(self, request: Request, reply: Reply) -> None:
        self._requests += 1
        await self._proxy.handle(request, reply, self._mine, self._requests)


async def run(listen: str, proxy: Proxy) -> None:
    """Until standard input is closed."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 4096) or stop.set())
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        with suppress(FileNotFoundError):
            os.unlink(path)
        await loop.create_unix_server(lambda: _Connection(proxy), path, backlog=1024)
        address = listen
    else:
        host, _, port = listen.rpartition(":")
        server = await loop.create_server(lambda: _Connection(proxy), host, int(port), backlog=1024)
        host, port = server.sockets[0].getsockname()[:2]
        address = f"http://{host}:{port}"
    print("ready", json.dumps({"address": address}), flush=True)
    await stop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="A proxy that spoils answers; see fault_plan.py.")
    parser.add_argument("--listen", required=True, help="unix:/path or host:port; port 0 lets the kernel choose")
    parser.add_argument("--engine", required=True, help="unix:/path or http://host:port")
    parser.add_argument("--plan", help="a JSON file")
    chosen = parser.parse_args()
    try:
        plan = read_plan(Path(chosen.plan).read_bytes()) if chosen.plan else Plan()
        asyncio.run(run(chosen.listen, Proxy(chosen.engine, plan)))
    except (BadPlan, OSError) as error:
        print(f"error: {error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
