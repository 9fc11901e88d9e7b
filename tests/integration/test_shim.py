"""Real shims with real children: what they promise about processes, logs and connections."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from modelyard.engines.contract import ExitReport, LaunchSpec, Probes
from modelyard.node import shims
from modelyard.node.lease import Lease
from modelyard.node.shim_wire import Exited, LogLine, ShimSpec
from modelyard.node.shims import ShimConnection, ShimListener
from modelyard.state import StateDirectory

Eventually = Callable[..., Awaitable[object]]
FOREVER = "import time, signal; print('up', flush=True); time.sleep(600)"


class Yard:
    """What yard and control do around shims: owns the rendezvous and the lease, adopts who dials."""

    def __init__(self, state: StateDirectory) -> None:
        self.state = state
        self.rendezvous = state.sockets / "shims.sock"
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(self.rendezvous))
        self.listening.listen(64)
        self.lease = Lease(state.lease)
        self.lease.renew()
        self.lease_s = 60.0
        self.ended: list[asyncio.Future[int]] = []
        self.connected: asyncio.Queue[ShimConnection] = asyncio.Queue()

    def spec(self, program: str, **changes: object) -> ShimSpec:
        launch = str(len(self.ended) + 1)
        settings: dict[str, object] = {
            "replica": "r0",
            "launch": launch,
            "folder": str(self.state.launches / f"r0-{launch}"),
            "spec": self.launch_spec(program),
            "rendezvous": str(self.rendezvous),
            "lease": str(self.state.lease),
            "lease_s": self.lease_s,
            "log_path": str(self.state.logs / "r0.log"),
        }
        return ShimSpec(**(settings | changes))  # type: ignore[arg-type]

    def launch_spec(self, program: str, **files: str) -> LaunchSpec:
        return LaunchSpec(
            argv=(sys.executable, "-c", program),
            environ={"PATH": "/usr/bin:/bin", "CANARY": "engine"},
            cwd=str(self.state.root),
            files=files,
            address=f"unix:{self.state.sockets / 'engine.sock'}",
            probes=Probes(health_path="/health", metrics_path=None),
            effective={},
        )

    def spawn(self, program: str, **changes: object) -> asyncio.Future[int]:
        self.ended.append(shims.spawn(self.spec(program, **changes), self.state))
        return self.ended[-1]

    @asynccontextmanager
    async def control(self) -> AsyncIterator[None]:
        """A control that lives as long as the block; when it dies its connections break, as with kill -9."""

        async def adopt(connection: ShimConnection) -> None:
            self.connected.put_nowait(connection)
            await asyncio.Event().wait()

        listening = socket.socket(fileno=os.dup(self.listening.fileno()))
        accepting = asyncio.create_task(ShimListener(listening).accept_forever(adopt))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            listening.close()


@pytest.fixture
async def yard(state: StateDirectory) -> AsyncIterator[Yard]:
    yard = Yard(state)
    yield yard
    yard.lease.end()
    yard.lease.close()
    yard.listening.close()
    for ended in yard.ended:
        if not ended.done():
            # The lease is looked at when it would have run out: an end needs no such patience here.
            for pid in processes_of(str(state.launches)):
                os.kill(pid, signal.SIGKILL)
            await ended


def processes_of(mark: str) -> list[int]:
    """Living processes whose command line holds `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in arguments and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


async def exit_of(connection: ShimConnection) -> tuple[Exited, list[str]]:
    lines = []
    async for event in connection.events():
        if isinstance(event, Exited):
            return event, lines
        lines.append(event.text)
    raise AssertionError("the connection ended without Exited")


async def first_line(connection: ShimConnection) -> str:
    async for event in connection.events():
        assert isinstance(event, LogLine)
        return event.text
    raise AssertionError("no line came")


async def test_an_engine_s_output_and_exit_code_reach_control(yard: Yard) -> None:
    async with yard.control():
        ended = yard.spawn("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)")
        connection = await yard.connected.get()
        exited, lines = await exit_of(connection)
        assert exited.report == ExitReport(code=3, signal=None, out_of_memory=False, tail=tuple(lines))
        assert sorted(lines) == ["one", "two"]
        assert not exited.asked
        await connection.release()
        assert await ended == 0
    assert list(yard.state.launches.iterdir()) == []


async def test_a_signal_is_told_apart_from_an_exit_code(yard: Yard) -> None:
    async with yard.control():
        yard.spawn("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        exited, _ = await exit_of(await yard.connected.get())
    assert (exited.report.code, exited.report.signal) == (None, signal.SIGSEGV)


async def test_a_kill_that_is_not_ours_is_said_so_and_is_no_want_of_memory(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(FOREVER)
        connection = await yard.connected.get()
        os.kill(connection.hello.engine_pid, signal.SIGKILL)
        exited, _ = await exit_of(connection)
    assert exited.report.signal == signal.SIGKILL
    assert not exited.asked
    assert not exited.report.out_of_memory


async def test_an_engine_that_cannot_be_started_exits_127_and_says_why(yard: Yard) -> None:
    spec = msgspec.structs.replace(yard.launch_spec(""), argv=("/no/such/engine",))
    async with yard.control():
        yard.spawn("", spec=spec)
        exited, _ = await exit_of(await yard.connected.get())
    assert exited.report.code == 127
    assert exited.report.tail == ("cannot start /no/such/engine: No such file or directory (/no/such/engine)",)


async def test_stop_lets_an_engine_end_by_itself(yard: Yard) -> None:
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
    async with yard.control():
        yard.spawn(program)
        connection = await yard.connected.get()
        await first_line(connection)
        await connection.stop(grace_s=60.0)
        exited, _ = await exit_of(connection)
    assert exited.asked
    assert (exited.report.code, exited.report.signal) == (0, None)


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(yard: Yard) -> None:
    async with yard.control():
        yard.spawn("import signal; signal.signal(15, signal.SIG_IGN); " + FOREVER)
        connection = await yard.connected.get()
        await first_line(connection)
        await connection.stop(grace_s=0.1)
        exited, _ = await exit_of(connection)
    assert exited.report.signal == signal.SIGKILL
    assert exited.asked
    assert not exited.report.out_of_memory


async def test_a_frozen_engine_is_ended_by_kill(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(FOREVER)
        connection = await yard.connected.get()
        os.kill(connection.hello.engine_pid, signal.SIGSTOP)
        await connection.kill()
        exited, _ = await exit_of(connection)
    assert exited.report.signal == signal.SIGKILL


# A family: a child in the group that ignores SIGTERM, and a grandchild that left the group and lost its parent.
FAMILY = """
import os, signal, subprocess, sys, time
print(os.getpid(), flush=True)
signal.signal(15, signal.SIG_IGN)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
signal.signal(15, signal.SIG_DFL)
time.sleep(600)
"""


async def family_of(connection: ShimConnection) -> list[int]:
    pids = []
    async for event in connection.events():
        assert isinstance(event, LogLine)
        pids.append(int(event.text))
        if len(pids) == 3:
            return pids
    raise AssertionError("the connection ended")


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and state_of(pid) not in "ZX"]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


async def test_when_exited_comes_nothing_that_the_engine_started_is_left(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(FAMILY)
        connection = await yard.connected.get()
        family = await family_of(connection)
        assert living(family) == family
        await connection.stop(grace_s=60.0)
        exited, _ = await exit_of(connection)
        assert living(family) == []
    assert exited.report.signal == signal.SIGTERM


async def test_when_the_shim_is_killed_the_engine_and_its_group_die_at_once(yard: Yard, eventually: Eventually) -> None:
    async with yard.control():
        ended = yard.spawn(FAMILY)
        connection = await yard.connected.get()
        family = await family_of(connection)
        escaped = [pid for pid in family if os.getpgid(pid) != connection.hello.engine_pid]
        os.kill(connection.hello.shim_pid, signal.SIGKILL)
        assert await ended == -signal.SIGKILL
        await eventually(lambda: living(family) == escaped, within_s=5.0)
        async for event in connection.events():
            assert not isinstance(event, Exited)
    for pid in escaped:
        os.kill(pid, signal.SIGKILL)
    shims.forget(yard.state, "r0", "1")
    shims.forget(yard.state, "r0", "1")
    assert list(yard.state.launches.iterdir()) == []


async def test_nothing_of_an_engine_outlives_a_yard_that_is_silent(yard: Yard, eventually: Eventually) -> None:
    yard.lease_s = 1.5
    async with yard.control():
        yard.lease.renew()
        ended = yard.spawn(FAMILY, spec=msgspec.structs.replace(yard.launch_spec(FAMILY), files={"flags.json": "{}"}))
        connection = await yard.connected.get()
        family = await family_of(connection)
        socket_file = yard.state.sockets / "engine.sock"
        socket_file.touch()
        assert await asyncio.wait_for(ended, 10.0) == 0
    assert living(family) == []
    assert not socket_file.exists()
    assert list(yard.state.launches.iterdir()) == []


async def test_a_lease_that_is_renewed_in_time_keeps_the_engine(yard: Yard, eventually: Eventually) -> None:
    yard.lease_s = 1.5
    async with yard.control():
        yard.lease.renew()
        first_end = time.monotonic() + yard.lease_s
        yard.spawn(FOREVER)
        connection = await yard.connected.get()

        def renewed_past_the_first_end() -> bool:
            yard.lease.renew()
            return time.monotonic() > first_end + yard.lease_s

        await eventually(renewed_past_the_first_end)
        assert living([connection.hello.engine_pid])


CONTROL = """
import asyncio, os, socket, sys
from modelyard.node.shims import ShimListener

async def adopt(connection):
    hello = connection.hello
    print(hello.launch, hello.shim_pid, hello.engine_pid, hello.started_at, flush=True)
    await asyncio.Event().wait()

asyncio.run(ShimListener(socket.socket(fileno=int(sys.argv[1]))).accept_forever(adopt))
"""


async def test_the_next_control_adopts_what_a_killed_one_left(yard: Yard) -> None:
    os.set_inheritable(yard.listening.fileno(), True)
    yard.spawn(FOREVER)
    told = []
    for _ in range(3):
        control = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CONTROL, str(yard.listening.fileno())),
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[yard.listening.fileno()],
        )
        assert control.stdout is not None
        told.append((await control.stdout.readline()).decode().split())
        control.kill()
        await control.wait()
    assert told[0] == told[1] == told[2]
    assert living([int(told[0][1]), int(told[0][2])])


async def test_an_exit_that_nobody_heard_is_told_to_the_next_control(yard: Yard, eventually: Eventually) -> None:
    async with yard.control():
        ended = yard.spawn(FOREVER)
        connection = await yard.connected.get()
        await first_line(connection)
    os.kill(connection.hello.engine_pid, signal.SIGTERM)
    await eventually(lambda: state_of(connection.hello.engine_pid) == "X")
    async with yard.control():
        connection = await yard.connected.get()
        exited, lines = await exit_of(connection)
        assert lines == ["up"]
        assert exited.report == ExitReport(code=None, signal=signal.SIGTERM, out_of_memory=False, tail=("up",))
        await connection.release()
        assert await ended == 0


async def test_release_is_not_heard_while_the_engine_runs(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(FOREVER)
        connection = await yard.connected.get()
        await connection.release()
        await connection.kill()
        exited, _ = await exit_of(connection)
    assert exited.report.signal == signal.SIGKILL


async def test_the_tail_is_the_last_fifty_lines(yard: Yard) -> None:
    async with yard.control():
        yard.spawn("for n in range(120): print(n)")
        exited, _ = await exit_of(await yard.connected.get())
    assert exited.report.tail == tuple(str(n) for n in range(70, 120))


async def test_output_can_forge_no_log_line_and_move_no_cursor(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(r"print('a\x1b[2Jb\u2028c\u202ed\x00'); print('half\rprogress 3%\rprogress 9%')")
        exited, _ = await exit_of(await yard.connected.get())
    expected = (r"a\x1b[2Jb\u2028c\u202ed\x00", "half", "progress 3%", "progress 9%")
    assert exited.report.tail == expected
    written = (yard.state.logs / "r0.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in written] == list(expected)


async def test_the_log_is_rotated_and_the_oldest_file_goes(yard: Yard) -> None:
    async with yard.control():
        program = "for n in range(20000): print(f'{n:0100d}')"
        yard.spawn(program, log_max_bytes=300_000, log_keep=2)
        await exit_of(await yard.connected.get())
    files = sorted(yard.state.logs.glob("r0.log*"))
    assert [file.name for file in files] == ["r0.log", "r0.log.1", "r0.log.2"]
    assert all(file.stat().st_size <= 300_000 for file in files)
    numbers = [int(line.split()[1]) for file in reversed(files) for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 20000))


async def test_an_engine_may_close_its_output_and_go_on(yard: Yard, eventually: Eventually) -> None:
    program = (
        "import os, time; print('bye', flush=True); os.close(1); os.close(2); open('closed', 'w'); time.sleep(600)"
    )
    async with yard.control():
        yard.spawn(program)
        connection = await yard.connected.get()
        assert await first_line(connection) == "bye"
        await eventually((yard.state.root / "closed").exists)
        shim = connection.hello.shim_pid
        before = cpu_ticks(shim)
        await asyncio.sleep(0.2)
        assert cpu_ticks(shim) - before <= 5, "the shim spins on a pipe that is closed"
        await connection.kill()
        await exit_of(connection)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


async def test_a_flood_of_output_neither_blocks_the_engine_nor_grows_the_shim(
    yard: Yard, eventually: Eventually
) -> None:
    flood = "import sys\nfor _ in range(1000): sys.stdout.write(('x' * 999 + '\\n') * 100)\nprint('end', flush=True)\n"
    async with yard.control():
        yard.spawn(flood + "open('flooded', 'w'); import time; time.sleep(600)", log_max_bytes=1_000_000)
        connection = await yard.connected.get()
        before_kb = rss_kb(connection.hello.shim_pid)
        # Nobody reads the connection meanwhile.
        await eventually((yard.state.root / "flooded").exists, within_s=60.0)
        assert rss_kb(connection.hello.shim_pid) - before_kb < 8 * 1024
        await connection.kill()
        dropped, last = 0, ""
        async for event in connection.events():
            if isinstance(event, Exited):
                break
            dropped += event.dropped
            last = event.text
        assert last == "end"
        assert dropped > 90_000


async def test_a_full_disk_costs_log_lines_and_not_the_engine(yard: Yard) -> None:
    async with yard.control():
        yard.spawn("for n in range(3): print(n, flush=True)", log_path="/dev/full")
        exited, lines = await exit_of(await yard.connected.get())
    assert exited.report.code == 0
    assert lines == ["0", "1", "2"]


CIRCUMSTANCES = """
import os, resource, stat
status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)
print('session', os.getsid(0) == os.getpid() == os.getpgid(0))
print('nnp', status['NoNewPrivs'])
print('env', *sorted(set(os.environ) - {'LC_CTYPE'}))
print('stdin', os.readlink('/proc/self/fd/0'))
print('core', resource.getrlimit(resource.RLIMIT_CORE))
print('fds', sorted(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) > 3))
print('blocked', status['SigBlk'], status['SigIgn'])
print('children', open(f'/proc/self/task/{os.getpid()}/children').read().split())
"""


async def test_an_engine_starts_in_known_circumstances(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(CIRCUMSTANCES)
        _, lines = await exit_of(await yard.connected.get())
    told = dict(line.split(" ", 1) for line in lines)
    assert told["session"] == "True"
    assert told["nnp"] == "1"
    assert told["env"] == "CANARY PATH"
    assert told["stdin"] == "/dev/null"
    assert told["core"] == "(0, 0)"
    assert told["fds"] == "[]"
    # Python itself ignores SIGPIPE (bit 12) and SIGXFSZ (bit 24).
    assert told["blocked"] == "0000000000000000 0000000001001000"
    assert told["children"] == "[]"


async def test_launch_files_are_the_owner_s_alone(yard: Yard) -> None:
    program = "import os, sys; p = 'launches/r0-1/flags.json'; print(oct(os.stat(p).st_mode & 0o777), open(p).read())"
    spec = msgspec.structs.replace(yard.launch_spec(program), files={"flags.json": "{}"})
    async with yard.control():
        yard.spawn("", spec=spec)
        _, lines = await exit_of(await yard.connected.get())
    assert lines == ["0o600 {}"]


async def test_what_an_engine_leaves_lying_about_goes_with_its_launch(yard: Yard) -> None:
    scratch = yard.state.sockets / "0a1b2c3d"
    shared = Path("/dev/shm") / f"modelyard-{scratch.name}-x"
    program = (
        f"import os, signal, pathlib; pathlib.Path({str(scratch)!r}, 'left').write_text('x'); "
        f"pathlib.Path({str(shared)!r}).write_text('x'); print('wrote', flush=True); os.kill(0, signal.SIGKILL)"
    )
    async with yard.control():
        yard.spawn(program, spec=msgspec.structs.replace(yard.launch_spec(program), scratch=str(scratch)))
        connection = await yard.connected.get()
        _, lines = await exit_of(connection)
        await connection.release()
        assert lines == ["wrote"]
        await yard.ended[0]
    assert not scratch.exists()
    assert not shared.exists()


async def test_a_shim_keeps_neither_the_rendezvous_nor_its_parent_s_files(yard: Yard) -> None:
    os.set_inheritable(yard.listening.fileno(), True)
    async with yard.control():
        yard.spawn(FOREVER)
        shim = (await yard.connected.get()).hello.shim_pid
        # Here and not later: a shim whose control is gone dials again and again, and its descriptors come and go.
        held = [os.readlink(entry) for entry in Path(f"/proc/{shim}/fd").iterdir()]
    inode = f"socket:[{os.fstat(yard.listening.fileno()).st_ino}]"
    assert held and inode not in held
    assert os.getsid(shim) == shim


async def test_another_user_is_not_listened_to(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shims, "peer_uid", lambda _connection: os.getuid() + 1)
    async with yard.control():
        reader, writer = await asyncio.open_unix_connection(str(yard.rendezvous))
        assert await reader.read() == b""
        writer.close()
    assert yard.connected.empty()


async def test_a_shim_hangs_up_on_what_it_does_not_understand_and_dials_again(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(FOREVER)
        connection = await yard.connected.get()
        connection._writer.write(b'{"kind": "run/v1", "argv": ["rm"]}\n')
        again = await yard.connected.get()
        assert again.hello == connection.hello
        async for event in connection.events():
            assert isinstance(event, LogLine)
        with pytest.raises(shims.ShimLost, match="the shim of r0 is gone"):
            for _ in range(100):
                await connection.stop(1.0)
                await asyncio.sleep(0)


async def test_sigterm_to_the_shim_stops_its_engine(yard: Yard) -> None:
    async with yard.control():
        yard.spawn(FOREVER)
        connection = await yard.connected.get()
        os.kill(connection.hello.shim_pid, signal.SIGTERM)
        exited, _ = await exit_of(connection)
    assert exited.asked
    assert exited.report.signal == signal.SIGTERM


async def test_a_damaged_launch_file_ends_the_shim_with_a_sentence(state: StateDirectory) -> None:
    path = state.launches / "r0-1.json"
    path.write_text("{}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "modelyard.node.shim", str(path)), stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 2
    assert b"not a ShimSpec" in error
    assert b"Traceback" not in error


async def test_a_launch_that_cannot_be_prepared_ends_its_shim_and_leaves_nothing(yard: Yard) -> None:
    yard.state.root.joinpath("file").touch()
    ended = yard.spawn("", folder=str(yard.state.root / "file" / "folder"))
    assert await ended == 1
    assert list(yard.state.launches.iterdir()) == []
    assert "cannot be prepared" in (yard.state.logs / "shims.log").read_text()
