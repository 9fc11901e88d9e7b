"""The kill campaigns in short: a whole yard with FakeEngines under load, each of its processes killed twice.

Bounds in seconds are the benchmark's to hold; here they are many times as long."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import kills_processes
from benchmarks.kills import Scene, play
from benchmarks.kills_client import Answer, counts_of
from benchmarks.kills_journal import check
from benchmarks.kills_rows import Bounds
from benchmarks.kills_yard import fake_yard

from modelyard.engines.contract import LaunchSpec, Probes
from modelyard.gateway.journal import JournalWriter
from modelyard.node.lease import Lease
from modelyard.node.shim_wire import ShimSpec
from modelyard.records.base import encode
from modelyard.records.journal import Outcome, RequestRecord
from modelyard.selftest.asking import Verdict
from modelyard.state import StateDirectory


@pytest.fixture
def folder() -> Generator[Path]:
    """Short enough for unix sockets, so that they lie where the campaign looks for them."""
    with tempfile.TemporaryDirectory(prefix="yk-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("target", "replicas"),
    [("engine", 2), ("shim", 1), ("control", 2), ("gateway", 1), ("yard", 1), ("yard that starts", 1)],
)
async def test_what_is_promised_holds_when_it_is_killed_under_load(target: str, replicas: int, folder: Path) -> None:
    scene = Scene((target,), replicas, 8, (2, 20), (0.1, 0.4), 60.0, Bounds().times(6))
    with fake_yard(folder / "state", scene.replicas, {"token_interval_s": 0.004}, lease_s=2.0) as yard:
        result = await play(scene, yard, scene.rows, 2, random.Random(target))
    (row,) = result.rows
    assert row.problems == []
    assert result.journal.problems == ()
    # A kill that meets no request proves nothing.
    assert row.kills == 2 and row.in_flight >= 4
    counts = counts_of(row.answers)
    assert counts["whole"] > 0 and result.journal.received >= counts["whole"]
    resets = row.in_flight if target in ("gateway", "yard", "yard that starts") else 0
    assert counts["reset"] <= resets


@pytest.mark.parametrize("is_started_again", [True, False])
def test_a_shim_without_a_lease_removes_the_socket_of_a_dead_yard_only(
    state: StateDirectory, is_started_again: bool
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as yard, Lease(state.lease) as lease:
        yard.bind(str(state.rendezvous))
        yard.listen()
        lease.renew()
        shim = ShimSpec(
            replica="r0",
            launch="1",
            folder=str(state.launches / "r0-1"),
            spec=LaunchSpec(
                argv=("sleep", "600"),
                environ={"PATH": "/usr/bin:/bin"},
                cwd="/",
                files={},
                address=f"unix:{state.sockets / 'engine.sock'}",
                probes=Probes(health_path="/health", metrics_path=None),
                effective={},
            ),
            rendezvous=str(state.rendezvous),
            lease=str(state.lease),
            log_path=str(state.logs / "r0.log"),
            lease_s=0.5,
        )
        file = state.launches / "r0-1.json"
        file.write_bytes(encode(shim))
        if not is_started_again:
            yard.close()
        subprocess.run([sys.executable, "-I", "-m", "modelyard.node.shim", str(file)], check=True, timeout=60)
    assert state.rendezvous.is_socket() == is_started_again
    assert [path.name for path in state.sockets.iterdir()] == (["shims.sock"] if is_started_again else [])


# What the campaign itself must notice; of streams see tests/unit/test_selftest.py.


def journal_of(folder: Path, *outcomes: tuple[str, Outcome]) -> Path:
    folder.mkdir()
    writer = JournalWriter(folder)
    for request_id, outcome in outcomes:
        writer.write(
            RequestRecord(
                request_id=request_id,
                worker=writer.worker,
                sequence=writer.sequence,
                at=0.0,
                endpoint="/v1/chat/completions",
                status=200,
                outcome=outcome,
            )
        )
    writer.close()
    return folder


def answer(request_id: str, verdict: Verdict) -> Answer:
    return Answer(verdict, request_id, 0.0, 0.0, 0.0)


def test_a_journal_that_tells_the_same_story_has_no_problems(tmp_path: Path) -> None:
    journal = journal_of(tmp_path / "journal", ("a", "complete"), ("b", "truncated"), ("c", "client_gone"))
    found = check(journal, [answer("a", "whole"), answer("b", "cut"), answer("", "reset")])
    assert (found.received, found.records, found.surplus, found.problems) == (2, 3, 1, ())


@pytest.mark.parametrize(
    ("outcomes", "problem"),
    [
        ([], "a has no record"),
        ([("a", "complete"), ("a", "complete")], "2 records of a"),
        ([("a", "truncated")], "a is truncated in the journal and whole at the client"),
        ([("a", "complete"), ("b", "complete")], "1 records without an answer, but only 0 requests did not end"),
    ],
)
def test_a_journal_that_tells_another_story_is_noticed(
    tmp_path: Path, outcomes: list[tuple[str, Outcome]], problem: str
) -> None:
    journal = journal_of(tmp_path / "journal", *outcomes)
    assert problem in check(journal, [answer("a", "whole")]).problems


def test_a_process_and_a_socket_that_were_left_behind_are_found(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(1, flush=True);"
         "sys.stdin.read()"],
        env={**os.environ, "SOME_STATE": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as left:  # fmt: skip
        assert left.stdin is not None and left.stdout is not None
        left.stdout.readline()
        (found,) = kills_processes.of_state(folder)
        assert found.pid == left.pid and found.lives
        (port,) = kills_processes.listening_ports([found])
        assert kills_processes.is_listening(port)
        left.stdin.close()
        left.wait()
        assert not found.lives and not kills_processes.is_listening(port)
    assert kills_processes.of_state(folder) == frozenset()
