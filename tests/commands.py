"""The `modelyard` command as a child process on a state directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Finished:
    """`lines` are the JSON values of standard output, one a line."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Command:
    """`command("status", "--json")` runs one verb. `program` is what stands for the installed script."""

    state: Path
    program: tuple[str, ...] = ("-m", "modelyard")
    timeout_s: float = TIMEOUT_S

    def __call__(self, *arguments: str, cwd: Path | None = None, check: bool = False) -> Finished:
        ended = subprocess.run(
            self._argv(arguments),
            env=self.environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.timeout_s,
        )
        finished = Finished(ended.returncode, ended.stdout, ended.stderr)
        assert not check or finished.code == 0, finished
        assert "Traceback" not in finished.err, finished.err
        return finished

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A verb that goes on."""
        return subprocess.Popen(
            self._argv(arguments),
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "MODELYARD_STATE": str(self.state)}

    def _argv(self, arguments: Iterable[str]) -> list[str]:
        return [sys.executable, *self.program, *arguments]
