"""A server in two processes: this one speaks HTTP, the other computes. If either ends, the other ends at once."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

import http1
from program_config import ConfigError


class Config(Protocol):
    @property
    def address(self) -> str: ...


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Computing:
    """The other process. `cause` is done when it has ended or will say no more: the reason that it named, if any."""

    name: str
    process: asyncio.subprocess.Process
    cause: Awaitable[str]


def program_beside(name: str) -> str:
    """The path of another program of this folder."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


async def serve(
    handler: http1.Handler, address: str, stopping: asyncio.Event, start: Callable[[], Awaitable[Computing]]
) -> int:
    """Listen, start the other process, serve until it ends, a signal comes or `stopping` is set; returns the exit code.
    Raises OSError where the address cannot be had."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    listener = await http1.listen(handler, address)
    computing = await start()
    ended = asyncio.ensure_future(computing.cause)
    stop = loop.create_task(stopping.wait())
    await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
    listener.close()
    if ended.done():
        cause = ended.result() or f"the {computing.name} process {_how_it_ended(await computing.process.wait())}"
        print(f"error: {cause}", flush=True)
        return 1
    with contextlib.suppress(ProcessLookupError):
        computing.process.kill()
    await computing.process.wait()
    return 0


def _how_it_ended(code: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    return how + (" (out of memory?)" if code == -signal.SIGKILL else "")


def main(engine: str, load: Callable[[str], C], run: Callable[[C, str], Coroutine[Any, Any, int]]) -> NoReturn:
    """The command line of such a server: exit 2 where `load` cannot read the configuration (ConfigError), 1 where the
    address cannot be had, else what `run` of the configuration and its path returns."""
    parser = argparse.ArgumentParser(description=f"OpenAI-compatible HTTP server for {engine}.")
    parser.add_argument("--config", required=True, help="JSON file: see ServerConfig beside this program")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        code = asyncio.run(run(config, arguments.config))
    except OSError as error:
        print(f"error: cannot serve on {config.address}: {error}", flush=True)
        code = 1
    sys.stdout.flush()
    # Handlers of open connections are not worth a farewell: their clients see the connection end.
    os._exit(code)
