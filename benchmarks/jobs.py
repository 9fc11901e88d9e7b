"""A load generator is a process that takes one JSON job a line on stdin and answers one JSON line: both ends of that.

Between two lines the child runs nothing, so whoever drives it can read CPU clocks there."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.subjects import CannotMeasure, module_environment


class WrongResult(Exception):
    """A subject answered wrongly, or its journal or the engine counted something else than what was sent."""


class LoadProcess:
    """The load generator as a child."""

    def __init__(self, module: str, log: Path) -> None:
        pipe = subprocess.PIPE
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module], stdin=pipe, stdout=pipe, stderr=errors, env=module_environment()
            )
        self._log = log

    def run(self, job: msgspec.Struct) -> dict[str, Any]:
        """Raises WrongResult with the generator's reason."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise CannotMeasure(f"the load generator ended:\n{self._log.read_text()[-2000:]}")
        result = json.loads(line)
        if "error" in result:
            raise WrongResult(result["error"])
        return result

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate()


def answer_jobs(run: Callable[[Any], Awaitable[object]], kind: Any) -> None:
    """The child's whole life; `kind` is the type of its jobs."""
    loop, decoder = uvloop.new_event_loop(), msgspec.json.Decoder(kind)
    gc.freeze()
    for line in sys.stdin.buffer:
        # The collector would look through everything kept for the check, in the middle of a measurement.
        gc.disable()
        try:
            reply: object = loop.run_until_complete(run(decoder.decode(line)))
        except (WrongResult, OSError) as error:
            reply = {"error": str(error) or type(error).__name__}
        gc.enable()
        gc.collect()
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()
