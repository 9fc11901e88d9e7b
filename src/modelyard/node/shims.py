"""Control's side of the shims: starts them, and speaks with each over the connection that it dialled.

A replica is adopted by its connection alone; no process is ever found again by a bare number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from modelyard.errors import ModelyardError
from modelyard.node import launch_files
from modelyard.node.shim_wire import (
    MAX_FRAME_BYTES,
    Exited,
    Hello,
    Kill,
    LogLine,
    Release,
    ShimSpec,
    Stop,
    ToShim,
    frame,
    peer_uid,
    read_from_shim,
)
from modelyard.records.base import UnreadableRecord, decode, encode
from modelyard.state import StateDirectory, write_atomically

_HELLO_WITHIN_S = 10.0


class ShimLost(ModelyardError):
    """The connection to a shim broke: it died, or this process was too slow for it to wait."""


def spawn(spec: ShimSpec, state: StateDirectory) -> asyncio.Future[int]:
    """Start a shim that outlives this process. The future is its exit status, known only while this process lives and
    its loop runs; whoever does not care may drop it, the shim is reaped all the same. Raises ModelyardError."""
    path = _path_of(state, spec.replica, spec.launch)
    try:
        write_atomically(path, encode(spec))
        with open(state.logs / "shims.log", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-I", "-m", "modelyard.node.shim", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"LANG": "C.UTF-8"},
                start_new_session=True,
                close_fds=True,
            )
    except OSError as error:
        raise ModelyardError(
            f"replica {spec.replica} cannot be started: {error.strerror}",
            hint="look for a full disk, and for limits on processes and open files (ulimit -a)",
        ) from error
    return _reaped(child)


def forget(state: StateDirectory, replica: str, launch: str) -> None:
    """Remove what a launch left on disk whose shim was killed; nothing where the shim did that itself."""
    path = _path_of(state, replica, launch)
    with contextlib.suppress(FileNotFoundError):
        launch_files.remove(decode(path.read_bytes(), ShimSpec), str(path))


def _path_of(state: StateDirectory, replica: str, launch: str) -> Path:
    return state.launches / f"{replica}-{launch}.json"


def _reaped(child: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    descriptor = os.pidfd_open(child.pid)

    def reap() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        status = child.wait()
        if not ended.done():
            ended.set_result(status)

    loop.add_reader(descriptor, reap)
    return ended


class ShimConnection:
    """One shim, from its Hello until the connection breaks. One task reads `events`; the others may be called from
    any task and raise ShimLost once the connection is gone."""

    def __init__(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self._reader, self._writer = reader, writer

    async def events(self) -> AsyncIterator[LogLine | Exited]:
        """What the shim tells, until the connection ends, however it ends. An end without Exited means that the shim
        died (its engine died with it) or will dial again."""
        while (record := await _read(self._reader)) is not None:
            if not isinstance(record, Hello):
                yield record

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the engine's group, SIGKILL after `grace_s`; Exited follows."""
        await self._say(Stop(grace_s=grace_s))

    async def kill(self) -> None:
        """SIGKILL to everything of the engine; Exited follows."""
        await self._say(Kill())

    async def release(self) -> None:
        """Let the shim go, after Exited."""
        await self._say(Release())

    async def close(self) -> None:
        """Hang up. A shim that was not released dials again."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _say(self, command: ToShim) -> None:
        try:
            self._writer.write(frame(command))
            await self._writer.drain()
        except OSError as error:
            raise ShimLost(f"the shim of {self.hello.replica} is gone: {error.strerror}") from error


class ShimListener:
    """Accepts shims on the listening unix socket that yard owns. The socket is never closed here: it is yard's, and
    what waits in its backlog is for the next control."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.set_inheritable(False)
        self._socket = sock

    async def accept_forever(self, on_connected: Callable[[ShimConnection], Awaitable[None]]) -> None:
        """Run `on_connected` in a task of its own for each shim; the connection is closed when it returns."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                accepted, _ = await loop.sock_accept(self._socket)
                if peer_uid(accepted) != os.getuid():
                    accepted.close()
                    continue
                tasks.create_task(_serve(accepted, on_connected))


async def _serve(accepted: socket.socket, on_connected: Callable[[ShimConnection], Awaitable[None]]) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=accepted, limit=MAX_FRAME_BYTES)
    try:
        async with asyncio.timeout(_HELLO_WITHIN_S):
            hello = await _read(reader)
    except TimeoutError:
        hello = None
    if not isinstance(hello, Hello):
        writer.close()
        return
    connection = ShimConnection(hello, reader, writer)
    try:
        await on_connected(connection)
    finally:
        await connection.close()


async def _read(reader: asyncio.StreamReader) -> Hello | LogLine | Exited | None:
    """The next record; None where the connection ended or what came is no record."""
    try:
        line = await reader.readuntil(b"\n")
        return read_from_shim(line)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, UnreadableRecord):
        return None
