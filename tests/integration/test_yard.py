"""The parent process: its sockets stay open whatever its children do, and it ends when and how it is told."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from modelyard.node.lease import remaining_s
from modelyard.records.base import decode
from modelyard.records.listening import Listening, StartFailed
from modelyard.state import StateDirectory, is_locked, open_state
from yards import RunningYard, engine_pids, fake_wanted, processes_of, running_yard, words_of

Eventually = Callable[..., Awaitable[Any]]


async def kill(yard: RunningYard, role: str, eventually: Eventually) -> None:
    old = yard.child(role)
    os.kill(old, signal.SIGKILL)
    await eventually(lambda: yard.child(role) not in (0, old), what=f"another {role}")


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def start(state: StateDirectory, *options: str) -> tuple[int, Listening | StartFailed]:
    """Start a yard that cannot serve; its exit code, and what it said to whoever started it."""
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelyard.yard", "--outcome-fd", str(write), *options),
        env={**os.environ, "MODELYARD_STATE": str(state.root)},
        pass_fds=[write],
        stdout=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = await asyncio.to_thread(pipe.readline)
    return await process.wait(), decode(said, Listening | StartFailed)  # type: ignore[arg-type]


async def test_a_killed_gateway_is_back_at_once_and_no_connection_is_refused(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        for _ in range(3):
            old = yard.child("gateway")
            os.kill(old, signal.SIGKILL)
            await eventually(partial(is_gone, old))
            # The socket is yard's: this request waits in its backlog for the next gateway.
            assert (await yard.ask())[0] == 200
            assert yard.child("gateway") != old
        log = yard.log("yard")
        assert log.count("gateway ended (signal 9)") == 3
        assert "starts again in 0.0 s" in log.splitlines()[-3]


async def test_requests_are_answered_while_control_is_dead(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        control = yard.child("control")
        os.kill(control, signal.SIGSTOP)
        assert (await yard.ask())[0] == 200
        os.kill(control, signal.SIGCONT)
        await kill(yard, "control", eventually)
        assert (await yard.ask())[0] == 200


async def test_the_lease_is_renewed_as_long_as_yard_lives(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(), MODELYARD_LEASE_S="2") as yard:
        await yard.open()
        [engine] = engine_pids(state)
        first = state.lease.read_bytes()
        await eventually(lambda: state.lease.read_bytes() != first)
        await eventually(lambda: state.lease.read_bytes() != first)
        assert engine_pids(state) == [engine]
        os.kill(yard.process.pid, signal.SIGKILL)
        await eventually(lambda: not processes_of(state), what="nothing of a dead yard is left")
        assert not state.rendezvous.exists()
        with socket.socket() as probe:
            port = int(yard.listening.url.rpartition(":")[2].removesuffix("/v1"))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


async def test_after_a_killed_yard_the_next_one_starts_clean(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        key, generation = yard.key, yard.topology().generation
        yard.process.kill()
        await yard.process.wait()
        assert not is_locked(state.yard_lock)
    async with running_yard(state) as yard:
        yard.key = key

        async def answers() -> bool:
            return (await yard.ask())[0] == 200

        await eventually(answers)
        assert yard.topology().generation > generation
        assert len(engine_pids(state)) == 1
        assert list(state.sockets.glob("shims.sock*")) == [state.rendezvous]


async def test_sigterm_finishes_answers_then_ends_everything_in_order(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(tokens=200)) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.02)
        async with yard.chat(stream=True, max_tokens=100) as answer:
            yard.process.send_signal(signal.SIGTERM)
            text, done = await words_of(answer)
            assert done and len(text.split()) == 100
            assert engine_pids(state), "engines end after the gateway"
        assert await asyncio.wait_for(yard.process.wait(), 30) == 0
        assert processes_of(state) == {}
        assert not state.yard.exists()
        assert remaining_s(state.lease, 5.0, 1e9) == 0.0
        assert [one.outcome for one in yard.journal()] == ["complete"]
        assert list(state.launches.iterdir()) == []


async def test_a_second_sigterm_does_not_wait_for_answers(state: StateDirectory, eventually: Eventually) -> None:
    async with running_yard(state, fake_wanted(tokens=4000, drain_timeout_s=300.0)) as yard:
        await yard.make_key()
        await yard.open()
        await yard.turn(token_interval_s=0.1)
        async with yard.chat(stream=True, max_tokens=4000) as answer:
            await answer.content.readline()
            yard.process.send_signal(signal.SIGTERM)
            await yard.gateway_follows()
            assert yard.process.returncode is None
            yard.process.send_signal(signal.SIGTERM)
            _, done = await words_of(answer)
            assert not done
        assert await asyncio.wait_for(yard.process.wait(), 20) == 0
        assert processes_of(state) == {}


async def test_a_second_sigterm_reaches_engines_that_have_begun_to_drain(
    state: StateDirectory, eventually: Eventually
) -> None:
    async with running_yard(state, fake_wanted(hang_timeout_s=300.0, drain_timeout_s=300.0)) as yard:
        await yard.make_key()
        await yard.open()
        # Asked behind the gateway's back: the gateway has nothing to finish, the engine has.
        await yard.turn(hang_after_tokens=2)
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
        asked = asyncio.create_task(yard.engine("POST", "/v1/chat/completions", body))

        async def is_busy() -> bool:
            return (await yard.replica()).running_requests == 1

        await eventually(is_busy)
        yard.process.send_signal(signal.SIGTERM)
        await eventually(lambda: not yard.child("gateway"))
        await yard.gateway_follows()
        assert engine_pids(state)
        yard.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(yard.process.wait(), 20) == 0
        await asyncio.gather(asked, return_exceptions=True)


async def test_a_second_yard_on_the_same_state_is_refused(state: StateDirectory) -> None:
    async with running_yard(state) as yard:
        code, said = await start(state, "--port", "0")
        assert code == 9
        assert isinstance(said, StartFailed)
        assert said.message.startswith("another Modelyard process is serving from this state directory")
        assert decode(state.yard.read_bytes(), Listening) == yard.listening


async def test_a_taken_port_is_named_and_nothing_is_left(state: StateDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = await start(state, "--port", str(port))
    assert code == 8
    assert isinstance(said, StartFailed)
    assert said.message == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert "--port" in said.hint
    assert not state.yard.exists() and not is_locked(state.yard_lock)


async def test_beyond_loopback_without_tls_it_does_not_listen(state: StateDirectory) -> None:
    code, said = await start(state, "--host", "0.0.0.0", "--port", "0")
    assert code == 8
    assert isinstance(said, StartFailed)
    assert "TLS is missing" in said.message


async def test_a_stale_yard_file_is_nobody(state: StateDirectory) -> None:
    stale = Listening(pid=1, url="http://127.0.0.1:1/v1", admin="http://127.0.0.1:1", started_at=0.0, version="0")
    from modelyard.cli.admin import listening
    from modelyard.records.base import encode

    state.yard.write_bytes(encode(stale))
    assert listening(state) is None
    async with running_yard(state) as yard:
        found = listening(state)
        assert found == yard.listening
        assert found is not None and found.pid == yard.process.pid


async def test_a_deep_state_directory_serves_over_short_sockets(tmp_path: Path, eventually: Eventually) -> None:
    deep = tmp_path.joinpath(*["deep" * 10] * 4)
    state = open_state(deep)
    assert len(str(state.rendezvous)) < 100 < len(str(state.root))
    async with running_yard(state, fake_wanted()) as yard:
        await yard.make_key()
        await yard.open()
        assert (await yard.ask())[0] == 200
        assert await yard.stop() == 0
    assert list(state.sockets.iterdir()) == []
    state.sockets.rmdir()


async def test_it_stays_the_process_that_was_started(state: StateDirectory, eventually: Eventually) -> None:
    """What a service manager watches: no fork into the background, children of its own, an exit code."""
    async with running_yard(state) as yard:
        assert yard.listening.pid == yard.process.pid
        await eventually(lambda: yard.child("control") and yard.child("gateway"))
        assert await yard.stop() == 0


async def test_it_ends_with_the_command_that_watches_it_unless_let_go(
    state: StateDirectory, eventually: Eventually
) -> None:
    for word, ends in ((b"", True), (b".", False)):
        read, write = os.pipe()
        os.set_inheritable(read, True)
        options = ("--port", "0", "--watch-fd", str(read))
        async with running_yard(state, options=options, pass_fds=(read,)) as yard:
            os.close(read)
            os.write(write, word)
            os.close(write)
            if ends:
                assert await asyncio.wait_for(yard.process.wait(), 30) == 0
            else:
                await eventually(lambda: yard.child("gateway"))
                assert (await yard.admin("GET", "/deployments"))[0] == 200
                assert yard.process.returncode is None
                assert await yard.stop() == 0
