"""A shipped fake as a child process: it says `ready {json}` with its address, and ends with its block or with us."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from modelyard.errors import EngineFailed

START_DEADLINE_S = 30.0


class ChildProgram:
    """One process. Subclasses start it in `_start` and wait there for what they call its beginning."""

    name = "child"

    def __init__(self, address: str) -> None:
        """Without an `address` it is a unix socket in a folder that goes with the process."""
        self._folder = tempfile.TemporaryDirectory(prefix="fake-engine-", ignore_cleanup_errors=True)
        self.log: list[str] = []
        self._address = address or f"unix:{self._folder.name}/{self.name}.sock"
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def address(self) -> str:
        """`unix:/path` or `http://host:port`, as in records.topology; the port is known once it is ready."""
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

    async def request(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        """One request on a connection of its own, `value` sent as JSON; the JSON that came back, whatever its status
        (errors are objects with `error`)."""
        async with self.client() as client, client.request(method, path, json=value) as response:
            return await response.json(content_type=None)

    def client(self) -> aiohttp.ClientSession:
        """A new HTTP client whose requests (`client.get("/health")`) go to this process."""
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
            kind = type(self).__name__
            raise EngineFailed(f"the {kind} was not started", hint=f"use it as `async with {kind}(...) as ...:`")
        return self._process

    async def _start(self) -> None:
        raise NotImplementedError

    async def _spawn(self, program: Path, arguments: Sequence[str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(program), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read_log())

    async def _await_start(self, begun: Any) -> None:
        """Wait for the beginning, the end or the deadline, whichever is first."""
        start, end = asyncio.ensure_future(begun), asyncio.create_task(self._child.wait())
        try:
            await asyncio.wait({start, end}, timeout=START_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                state = f"ended with {self.exit_code}" if end.done() else f"not there after {START_DEADLINE_S} s"
                tail = " | ".join(self.log[-5:])
                raise EngineFailed(
                    f"the {type(self).__name__} is {state}: {tail}", hint="look at the knobs that it was given"
                )
        finally:
            start.cancel()
            end.cancel()

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
