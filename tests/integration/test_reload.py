"""What can be changed while clients ask: the gateway's program, keys, topology; no request fails for any of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
from reload_load import BusyClients

from modelyard.cli.admin import gateways
from modelyard.records.listening import Gateways
from modelyard.state import StateDirectory
from yards import RunningYard, fake_wanted, running_yard, words_of

Eventually = Callable[..., Awaitable[Any]]


def seen(state: StateDirectory) -> Gateways:
    found = gateways(state)
    assert found is not None
    return found


async def reload(yard: RunningYard) -> str:
    """`modelyard reload`; what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelyard", "reload", "--json"),
        env={**os.environ, "MODELYARD_STATE": str(yard.state.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said.decode()


async def test_no_request_fails_while_the_gateway_is_replaced(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(token_interval_s=0.002)) as yard:
        await yard.make_key()
        await yard.open()
        pids = {yard.child("gateway")}
        async with BusyClients(yard, keep_alive=6, fresh=2) as clients:
            await clients.more(40)
            for _ in range(3):
                found = msgspec.json.decode(await reload(yard), type=Gateways)
                assert found.failure == "" and found.serving[0].pid not in pids
                pids.add(found.serving[0].pid)
                await clients.more(40)
        assert clients.failures == []
        assert clients.idle_closes == 0, "who asks on is told in an answer that its connection ends"
        await eventually(lambda: not seen(state).leaving, what="those that were replaced have ended")
        [serving] = seen(state).serving
        assert (serving.pid, serving.is_ready) == (yard.child("gateway"), True)
        assert len([one for one in yard.journal() if one.outcome == "complete"]) == clients.answered
        assert "gateway ended" not in yard.log("yard"), "an end that was asked for is no crash"


async def test_a_stream_goes_on_through_a_reload(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(tokens=400)) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.01)
        async with yard.chat(stream=True, max_tokens=200) as answer:
            await answer.content.readline()
            old = yard.child("gateway")
            await reload(yard)
            assert seen(state).leaving == (old,)
            text, done = await words_of(answer)
            assert done and len(text.split()) >= 199
        await eventually(lambda: not seen(state).leaving)
        assert await yard.stop() == 0


async def test_a_gateway_that_does_not_start_replaces_nobody(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        old = yard.child("gateway")
        # The next one cannot open its journal. The command would make the folder anew: it is asked as the command asks.
        state.journal.rename(state.root / "away")
        yard.process.send_signal(signal.SIGHUP)
        await eventually(lambda: seen(state).reloads == 1)
        assert seen(state).failure == "the next gateway ended before it served"
        assert (await yard.ask())[0] == 200
        assert yard.child("gateway") == old
        (state.root / "away").rename(state.journal)
        await reload(yard)
        assert yard.child("gateway") != old
        assert (await yard.ask())[0] == 200


async def test_no_request_fails_while_topology_and_keys_change(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(replicas=2, token_interval_s=0.002)) as yard:
        await yard.make_key()
        await yard.open()
        async with BusyClients(yard, keep_alive=6, fresh=2) as clients:
            for name in ("second", "third"):
                await clients.more(20)
                # A rotation as operators do it: the new key first, the old one revoked when nobody uses it any more.
                old = clients.key
                await yard.want(fake_wanted(name))
                await yard.open(name)
                clients.key = await yard.make_key()
                await yard.gateway_follows()
                await clients.more(20)
                revoked, _ = await yard.admin("DELETE", f"/keys/{old.split('_')[1]}")
                assert revoked == 200
                await clients.more(20)
                gone, _ = await yard.admin("DELETE", f"/deployments/{name}")
                assert gone == 200
        assert clients.failures == [] and clients.idle_closes == 0


async def test_whoever_comes_while_the_gateway_ends_is_told_at_once(state: StateDirectory) -> None:
    async with running_yard(state, fake_wanted(tokens=400)) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.01)
        ready = yard.listening.url.removesuffix("/v1") + "/ready"
        async with yard.chat(stream=True, max_tokens=200) as answer:
            await answer.content.readline()
            yard.process.send_signal(signal.SIGTERM)

            async def is_told() -> bool:
                async with yard.http.get(ready) as told:
                    return told.status == 503 and "retry-after" in told.headers

            deadline = asyncio.get_running_loop().time() + 20
            while not await is_told():
                assert asyncio.get_running_loop().time() < deadline
            async with yard.chat() as late:
                assert late.status == 503
                assert json.loads(await late.read())["error"]["code"] == "gateway_stopped"
            _, done = await words_of(answer)
            assert done
        assert await asyncio.wait_for(yard.process.wait(), 30) == 0
        try:
            await yard.http.get(ready)
        except aiohttp.ClientConnectionError:
            return
        raise AssertionError("the port is still open")
