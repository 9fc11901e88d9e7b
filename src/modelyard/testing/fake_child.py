"""A FakeEngine as a child process, for tests and demos: start it, turn its knobs, look at what reached it, end it."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from modelyard.testing.child_program import ChildProgram
from modelyard.testing.fake_knobs import Knobs, Value

PROGRAM = Path(__file__).with_name("fake_engine.py")


class FakeEngine(ChildProgram):
    """`async with FakeEngine(token_interval_s=0.01) as engine:` runs one engine with these knobs (fake_knobs.Knobs).

    It listens on a unix socket of its own unless `address` says otherwise, and ends, killed if need be, with the
    block or with this process. `until` says when the block begins: at `ready`; once it is `listening`, be it with 503;
    or as soon as it is `spawned`. Raises EngineFailed where it ends before that, BadKnob for a wrong knob."""

    name = "engine"

    def __init__(self, *, until: Literal["ready", "listening", "spawned"] = "ready", **knobs: Value) -> None:
        super().__init__("")
        self.knobs = Knobs(address=self._address).changed(knobs)
        self._address = self.knobs.address
        self._until = until

    async def set(self, **knobs: Value) -> None:
        """Turn knobs of the running engine."""
        reply = await self.request("POST", "/fake/knobs", knobs)
        self.knobs = self.knobs.turned({name: reply[name] for name in knobs})

    async def seen(self) -> dict[str, Any]:
        """`requests`: the last ones under /v1/ as they arrived (method, path, headers, body); `counters`: running,
        waiting, served, cancelled, steps, prompt_tokens, generation_tokens, connections, hung."""
        return await self.request("GET", "/fake/seen")

    async def working(self) -> int:
        """How many requests run or wait."""
        counters = (await self.seen())["counters"]
        return counters["running"] + counters["waiting"]

    async def _start(self) -> None:
        config = Path(self._folder.name) / "knobs.json"
        differing = {name: value for name, value in vars(self.knobs).items() if value != getattr(Knobs(), name)}
        config.write_text(json.dumps(differing))
        await self._spawn(PROGRAM, ("--config", str(config), "--end-with-stdin"))
        if self._until == "ready":
            await self._await_start(self._ready.wait())
        elif self._until == "listening":
            await self._await_start(self._until_listening())

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
