"""FakeEngine: a process that speaks an inference engine's HTTP and prints its log, and misbehaves on request.

    python fake_engine.py --config FILE.json      knobs (fake_knobs.Knobs) as JSON: {"token_interval_s": 0.02}
    python -m modelyard.testing.fake_engine address=127.0.0.1:8000 token_interval_s=0.02

Standard library only, ready in well under 0.3 s. It answers `/v1/chat/completions` and `/v1/completions` (streamed or
not) deterministically and in OpenAI's shapes, `/v1/messages` and `/v1/responses` in their own, `/v1/embeddings`,
`/v1/rerank`, `/tokenize` and `/detokenize`, `/v1/models`, `/health`, `/metrics` (Prometheus text) and `/effective` (its
knobs). Its log: `progress {json}` while it loads, `ready {json}` with the address once it listens, `error: cause`
before a failure that it can name. SIGTERM ends it at once with exit code 0.

For tests: `POST /fake/knobs` turns knobs and returns them all; `GET /fake/seen` returns the last requests as they
arrived (method, path, headers, body) and the counters; both answer whatever else hangs."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

# Run by path, perhaps by an interpreter that knows nothing of us; the programs never stand in a package.
_MODELYARD = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_MODELYARD.parent), str(_MODELYARD / "programs")]

import http1  # noqa: E402
from http1 import Reply, Request  # noqa: E402
from modelyard.testing.fake_knobs import CRASHES, BadKnob, Knobs, Value, read_object  # noqa: E402
from modelyard.testing.fake_routes import Routes  # noqa: E402


class _Connection(http1.Connection):
    """One client's connection, with the misbehaviour that lies below HTTP."""

    def __init__(self, routes: Routes) -> None:
        super().__init__(self._handle)
        self._routes = routes
        self._client: asyncio.Transport | None = None
        self._replied = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._routes.connections += 1
        self._client = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        assert self._client is not None
        if self._replied and self._routes.knobs.close_keepalive_on_reuse:
            return self._client.close()
        super().data_received(data)
        if self._routes.knobs.slow_read_s:
            self._client.pause_reading()
            asyncio.get_running_loop().call_later(self._routes.knobs.slow_read_s, self._client.resume_reading)

    async def _handle(self, request: Request, reply: Reply) -> None:
        try:
            await self._routes.handle(request, reply)
        finally:
            self._replied = True
        if self._routes.knobs.close_keepalive_after_reply:
            reply.transport.close()


class DoesNotFit(Exception):
    """What it needs is not there; the message says what."""


def say(kind: str, **values: object) -> None:
    """One line of the log: its kind, then JSON."""
    print(kind, json.dumps(values), flush=True)


async def run(knobs: Knobs, *, end_with_stdin: bool = False) -> int:
    """Load as the knobs say, serve until SIGTERM or SIGINT; the exit code."""
    loop = asyncio.get_running_loop()
    routes, stop = Routes(knobs), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: _ignored(routes.knobs) or stop.set())
    workers = [await _start_worker() for _ in range(knobs.workers)]
    if end_with_stdin:
        loop.add_reader(0, lambda: os.read(0, 4096) or stop.set())
    serving = asyncio.create_task(_load_and_listen(routes))
    stopping = asyncio.create_task(stop.wait())
    lost = asyncio.create_task(_first_lost(workers, routes))
    await asyncio.wait({serving, stopping, lost}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    await asyncio.wait({stopping, lost}, return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        return 1
    if knobs.defect == "drain":
        await routes.finish_running()
    for worker in workers:
        worker.kill()
    if knobs.address.startswith("unix:"):
        Path(knobs.address.removeprefix("unix:")).unlink(missing_ok=True)
    return 0


def _ignored(knobs: Knobs) -> bool:
    ignored = knobs.ignore_sigterm or knobs.defect == "terminate"
    if ignored:
        print("ignoring the signal", flush=True)
    return ignored


async def _start_worker() -> asyncio.subprocess.Process:
    """A process that does nothing and ends with this one, not by a signal to their group."""
    program = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdin.read()"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", program), stdin=asyncio.subprocess.PIPE
    )


async def _first_lost(workers: list[asyncio.subprocess.Process], routes: Routes) -> None:
    """Returns when a worker has died, having said so."""
    if not workers:
        await asyncio.Event().wait()
    await asyncio.wait({asyncio.create_task(worker.wait()) for worker in workers}, return_when=asyncio.FIRST_COMPLETED)
    if routes.knobs.defect == "kill-2":
        routes.hang()
        await asyncio.Event().wait()
    print("error: a worker died", flush=True)


async def _load_and_listen(routes: Routes) -> asyncio.Server:
    knobs = routes.knobs
    if knobs.load_log_lines:
        print(knobs.load_log_lines, flush=True)
    if knobs.defect == "nothing-left":
        Path("left-behind.txt").write_text("nobody removes this\n")
    if knobs.kv_cache_bytes is not None and knobs.kv_cache_bytes < knobs.kv_least_bytes:
        raise DoesNotFit(f"{knobs.kv_cache_bytes} bytes of KV cache given, {knobs.kv_least_bytes} needed")
    weights = _allocated(knobs.memory_bytes)
    server: asyncio.Server | None = None
    match knobs.startup_style:
        case "503":
            server = await _listen(routes)
            await asyncio.sleep(knobs.startup_s)
        case "refused-then-503":
            await asyncio.sleep(knobs.startup_s / 2)
            server = await _listen(routes)
            await asyncio.sleep(knobs.startup_s / 2)
        case "log-progress":
            await _load_with_progress(knobs)
        case "503-with-progress":
            server = await _listen(routes)
            await _load_with_progress(knobs)
        case _:
            await asyncio.sleep(knobs.startup_s)
    if knobs.crash_at_start:
        _crash_at_start(knobs.crash_at_start)
    routes.loading = False
    routes.weights = weights
    server = server or await _listen(routes)
    if knobs.defect == "listeners":
        await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    say("ready", address=_address_of(server, knobs), pid=os.getpid())
    return server


async def _load_with_progress(knobs: Knobs) -> None:
    if not knobs.progress_lines:
        await asyncio.sleep(knobs.startup_s)
    for line in range(knobs.progress_lines):
        await asyncio.sleep(knobs.startup_s / knobs.progress_lines)
        done = knobs.progress_lines - line if knobs.defect == "progress" else line + 1
        say("progress", stage="loading", fraction=done / knobs.progress_lines)


def _allocated(size_bytes: int) -> bytearray:
    try:
        return bytearray(size_bytes)
    except MemoryError:
        raise DoesNotFit(f"{size_bytes} bytes of memory were refused") from None


def _crash_at_start(how: str) -> None:
    code, lines = CRASHES[how]
    print("\n".join(lines), flush=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


async def _listen(routes: Routes) -> asyncio.Server:
    loop, address = asyncio.get_running_loop(), routes.knobs.address
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        with suppress(FileNotFoundError):
            os.unlink(path)
        return await loop.create_unix_server(lambda: _Connection(routes), path, backlog=1024)
    host, _, port = address.rpartition(":")
    return await loop.create_server(lambda: _Connection(routes), host, int(port), backlog=1024)


def _address_of(server: asyncio.Server, knobs: Knobs) -> str:
    if knobs.address.startswith("unix:"):
        return knobs.address
    host, port = server.sockets[0].getsockname()[:2]
    return f"http://{host}:{port}"


def read_knobs(config: str | None, changes: list[str]) -> Knobs:
    """Knobs from a JSON file, then from NAME=VALUE words (a value is JSON, or else a plain text)."""
    knobs = Knobs()
    if config is not None:
        told = read_object(Path(config).read_bytes())
        if told.get("defect") == "bad-setting":
            told = {name: value for name, value in told.items() if hasattr(knobs, name)}
        knobs = knobs.changed(told)
    values: dict[str, Value] = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return knobs.changed(values)


def main() -> int:
    parser = argparse.ArgumentParser(description="An inference engine that only pretends; see fake_knobs.py.")
    parser.add_argument("--config", help="a JSON file with knobs")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input is closed")
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE")
    arguments = parser.parse_args()
    try:
        return asyncio.run(run(read_knobs(arguments.config, arguments.knobs), end_with_stdin=arguments.end_with_stdin))
    except BadKnob as error:
        print(f"error: {error}", flush=True)
        return 2
    except DoesNotFit as error:
        print(f"error: does not fit: {error}", flush=True)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
