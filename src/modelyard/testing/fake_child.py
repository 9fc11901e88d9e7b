"""A FakeEngine as a child process, for tests and demos: start it, turn its knobs, look at what reached it, end it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from modelyard.errors import EngineFailed
from modelyard.testing.fake_knobs import Knobs, Value

PROGRAM = Path(__file__).with_name("fake_engine.py")
START_DEADLINE_S = 30.0


class FakeEngine:
    """`async with FakeEngine(token_interval_s=0.01) as engine:` runs one engine with these knobs (fake_knobs.Knobs).

    It listens on a unix socket of its own unless `address` says otherwise, and ends, killed if need be, with the
    block or with this process. `until` says when the block begins: at `ready`; once it is `listening`, be it with 503;
    or as soon as it is `spawned`. Raises EngineFailed where it ends before that, BadKnob for a wrong knob."""

    def __init__(self, *, until: Literal["ready", "listening", "spawned"] = "ready", **knobs: Value) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fake-engine-", ignore_cleanup_errors=True)
        self.knobs = Knobs(address=f"unix:{self._folder.name}/engine.sock").changed(knobs)
        self.log: list[str] = []
        self._until = until
        self._address = self.knobs.address
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def address(self) -> str:
        """`unix:/path` or `http://host:port`, as in records.topology; the port is known once the engine is ready."""
        return self._address if self._address.startswith(("unix:", "http:")) else f"http://{self._address}"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative for the signal that it ended by."""
        return self._child.returncode

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def set(self, **knobs: Value) -> None:
        """Turn knobs of the running engine."""
        reply = await self.request("POST", "/fake/knobs", knobs)
        self.knobs = self.knobs.turned({name: reply[name] for name in knobs})

    async def seen(self) -> dict[str, Any]:
        """`requests`: the last ones under /v1/ as they arrived (method, path, headers, body); `counters`: running,
        waiting, served, cancelled, steps, prompt_tokens, generation_tokens, connections, hung."""
        return await self.request("GET", "/fake/seen")

    async def request(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        """One request on a connection of its own, `value` sent as JSON; the JSON that came back, whatever its status
        (errors are objects with `error`)."""
        async with self.client() as client, client.request(method, path, json=value) as response:
            return await response.json(content_type=None)

    def client(self) -> aiohttp.ClientSession:
        """A new HTTP client whose requests (`client.get("/health")`) go to this engine."""
        if self._address.startswith("unix:"):
            connector = aiohttp.UnixConnector(self._address.removeprefix("unix:"))
            return aiohttp.ClientSession("http://engine", connector=connector)
        return aiohttp.ClientSession(self.address)

    def kill(self) -> None:
        """SIGKILL, now."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def ended(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        return await self._child.wait()

    @property
    def _child(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise EngineFailed("the FakeEngine was not started", hint="use it as `async with FakeEngine() as engine:`")
        return self._process

    async def _start(self) -> None:
        config = Path(self._folder.name) / "knobs.json"
        differing = {name: value for name, value in vars(self.knobs).items() if value != getattr(Knobs(), name)}
        config.write_text(json.dumps(differing))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(PROGRAM), "--config", str(config), "--end-with-stdin"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read_log())
        if self._until == "ready":
            await self._await_start(self._ready.wait())
        elif self._until == "listening":
            await self._await_start(self._until_listening())

    async def _await_start(self, begun: Any) -> None:
        """Wait for the beginning, the end or the deadline, whichever is first."""
        start, end = asyncio.ensure_future(begun), asyncio.create_task(self._child.wait())
        try:
            await asyncio.wait({start, end}, timeout=START_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                state = f"ended with {self.exit_code}" if end.done() else f"not there after {START_DEADLINE_S} s"
                tail = " | ".join(self.log[-5:])
                raise EngineFailed(f"the FakeEngine is {state}: {tail}", hint="look at the knobs that it was given")
        finally:
            start.cancel()
            end.cancel()

    async def _until_listening(self) -> None:
        while True:
            with suppress(OSError):
                return await self._connect_once()
            await asyncio.sleep(0.005)

    async def _connect_once(self) -> None:
        if self._address.startswith("unix:"):
            _, writer = await asyncio.open_unix_connection(self._address.removeprefix("unix:"))
        else:
            host, _, port = self._address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()

    async def _read_log(self) -> None:
        assert self._child.stdout is not None
        async for line in self._child.stdout:
            self.log.append(line.decode(errors="replace").rstrip("\n"))
            kind, _, values = self.log[-1].partition(" ")
            if kind == "ready":
                self._address = json.loads(values)["address"]
                self._ready.set()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def _end(self) -> None:
        if self._process is not None:
            self.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading
        self._folder.cleanup()
