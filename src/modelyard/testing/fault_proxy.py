"""A FaultProxy as a child process: it stands between a gateway and an engine, and spoils answers by a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.testing.child_program import ChildProgram
from modelyard.testing.fault_plan import Fault, written

PROGRAM = Path(__file__).with_name("fault_program.py")


class FaultProxy(ChildProgram):
    """`async with FaultProxy(engine.address) as proxy:` stands before an engine at `proxy.address`: a unix socket of
    its own unless `listen` says otherwise (`unix:/path` or `host:port`). It ends with the block or with this process.
    Until `plan` is called it changes nothing. Raises EngineFailed where it does not start."""

    name = "proxy"

    def __init__(self, engine: str, *, listen: str = "") -> None:
        super().__init__(listen)
        self._engine = engine

    async def plan(self, *faults: Fault, seed: int = 0) -> None:
        """From now on the first of `faults` that is meant for a request happens to it. What is under way goes on as it
        began."""
        await self.request("POST", "/fault/plan", written(faults, seed))

    async def seen(self) -> list[dict[str, Any]]:
        """What happened to the requests under /v1/, in order: `path`, `fault`, `bytes` that were sent, `ended` (whole,
        cut, no answer, client left), the `connection` and which `number` the request is on it."""
        return (await self.request("GET", "/fault/seen"))["requests"]

    async def _start(self) -> None:
        await self._spawn(PROGRAM, ("--listen", self._address, "--engine", self._engine))
        await self._await_start(self._ready.wait())
