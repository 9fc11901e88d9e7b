"""What is kept of a conformance result, how it is told, and how processes and sockets are found."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from conformance_fakes import a_subject
from modelyard.cli.conformance import proved_here
from modelyard.engines.contract import Installed
from modelyard.hardware.machine import Machine
from modelyard.records.base import decode, encode
from modelyard.state import StateDirectory
from modelyard.verify.conformance.document import document, in_short
from modelyard.verify.conformance.processes import engine_processes, is_alive, listeners
from modelyard.verify.conformance.record import Conformance, Outcome, Verdict, latest, save
from modelyard.verify.conformance.rows_cancel import CANCEL_ROWS
from modelyard.verify.conformance.rows_ending import ENDING_ROWS, NOTHING_LEFT_ROW
from modelyard.verify.conformance.rows_metrics import METRIC_ROWS
from modelyard.verify.conformance.rows_plan import PLAN_ROWS
from modelyard.verify.conformance.rows_refused import REFUSED_ROWS
from modelyard.verify.conformance.rows_running import running_rows, strangers
from modelyard.verify.conformance.rows_start import RESTART_ROW, START_ROWS

MACHINE = Machine(
    cores=2, memory_bytes=8 << 30, available_bytes=1 << 30, cpu_model="a cpu", isa=("avx2",), os="linux", arch="x86_64"
)
INSTALLED = Installed(engine="small", version="1.2", python="/p", root="/r", lock_sha256="5" * 64)


def an_outcome(row: str, verdict: Verdict = "green", **changes: str) -> Outcome:
    outcome = Outcome(
        row=row, claim="a claim", bound="a bound", predicted="this", measured="that", verdict=verdict, duration_s=0.5
    )
    return replace(outcome, **changes)


def a_result(*rows: Outcome, tail: tuple[str, ...] = ()) -> Conformance:
    return Conformance(
        engine="small",
        version="1.2",
        lock_sha256="5" * 64,
        modelyard="0.1",
        model="a-model",
        artifact_sha256="6" * 64,
        machine=MACHINE,
        at=1_700_000_000.0,
        duration_s=12.0,
        rows=rows or (an_outcome("chat"),),
        effective={"threads": 2},
        tail=tail,
    )


def test_a_result_is_green_when_something_was_proved_and_nothing_refuted() -> None:
    assert a_result(an_outcome("a"), an_outcome("b", "not claimed"), an_outcome("c", "not asked")).green
    assert not a_result(an_outcome("a"), an_outcome("b", "red")).green
    assert not a_result(an_outcome("a", "not claimed"), an_outcome("b", "not asked")).green


def test_the_last_result_of_an_engine_is_kept(state: StateDirectory) -> None:
    assert latest(state, "small") is None
    save(state, a_result())
    second = a_result(an_outcome("chat", "red"))
    save(state, second)
    assert latest(state, "small") == second
    assert decode(encode(second), Conformance) == second


def test_a_result_of_another_version_is_no_result(state: StateDirectory) -> None:
    save(state, a_result())
    (state.conformance / "small.json").write_text('{"schema": "conformance/v0"}')
    assert latest(state, "small") is None


def test_what_was_proved_speaks_for_this_installation_on_this_machine_alone(state: StateDirectory) -> None:
    assert proved_here(state, INSTALLED, MACHINE) == "no"
    save(state, a_result())
    assert proved_here(state, INSTALLED, MACHINE) == "2023-11-14"
    assert proved_here(state, None, MACHINE) == "no"
    assert proved_here(state, replace(INSTALLED, lock_sha256="7" * 64), MACHINE) == "no"
    assert proved_here(state, replace(INSTALLED, version="1.3"), MACHINE) == "no"
    assert proved_here(state, INSTALLED, replace(MACHINE, cores=4)) == "no"
    assert proved_here(state, INSTALLED, replace(MACHINE, available_bytes=5)) == "2023-11-14"
    save(state, a_result(an_outcome("chat", "red")))
    assert proved_here(state, INSTALLED, MACHINE) == "red 2023-11-14"


def test_the_document_says_who_was_tried_where_and_every_row() -> None:
    text = document(a_result(an_outcome("chat"), an_outcome("usage", "not claimed", measured="no usage")))
    for needed in ("small 1.2: green", "a cpu, 2 cores, 8.0 GiB", "avx2", "5" * 64, "6" * 64, "2023-11-14", "threads"):
        assert needed in text, needed
    assert "| ✓ | chat | a claim | this | that | 0.5 s |" in text
    assert "| - | usage | a claim | this | not claimed: no usage | 0.5 s |" in text
    assert "What is red" not in text and "last lines" not in text


def test_the_document_of_a_red_result_has_the_advice_and_the_log() -> None:
    red = an_outcome("chat", "red", advice="try this")
    text = document(a_result(red, tail=("line one", "```", "line three")))
    assert "small 1.2: red" in text and "- try: try this" in text
    assert "````text\nline one\n```\nline three\n````" in text


def test_what_an_engine_says_cannot_become_markup() -> None:
    text = document(a_result(an_outcome("chat", measured="a | b\n# head <img src=x> [l](u) `c`")))
    assert r"a \| b # head \<img src=x> \[l](u) \`c\`" in text
    row = next(line for line in text.splitlines() if "| chat |" in line)
    assert row.replace(r"\|", "").count("|") == 7


def test_the_summary_counts_each_verdict() -> None:
    result = a_result(an_outcome("a"), an_outcome("b", "red"), an_outcome("c", "not claimed"))
    assert in_short(result) == "1 green, 1 red, 1 not claimed of 3 rows in 12 s"


def test_processes_are_found_below_their_parent_and_known_when_they_are_gone() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=0)"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        while len(found := [one for one in engine_processes(os.getpid()) if one.pid >= child.pid]) < 2:
            assert child.poll() is None
        assert found[0].pid == child.pid
        assert all(is_alive(process) for process in found)
    finally:
        child.communicate(b"\n")
    assert not any(is_alive(process) for process in found)


def test_listeners_are_told_by_their_address(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_INET) as tcp,
        socket.socket(socket.AF_INET6) as tcp6,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_INET) as not_listening,
    ):
        tcp.bind(("127.0.0.1", 0))
        not_listening.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "a socket"))
        abstract.bind(f"\0modelyard-{os.getpid()}")
        try:
            tcp6.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        for one in (tcp, tcp6, unix, abstract):
            one.listen()
        me = [process for process in engine_processes(os.getppid()) if process.pid == os.getpid()]
        assert listeners(me) >= {
            f"http://127.0.0.1:{tcp.getsockname()[1]}",
            f"http://[::1]:{tcp6.getsockname()[1]}",
            f"unix:{tmp_path / 'a socket'}",
            f"unix:@modelyard-{os.getpid()}",
        }
        assert f"http://127.0.0.1:{not_listening.getsockname()[1]}" not in listeners(me)
    assert listeners(me) == frozenset()


@pytest.mark.parametrize("claimed", [False, True])
def test_an_engine_s_own_ports_stay_on_loopback_and_are_claimed(claimed: bool) -> None:
    beyond = {"http://0.0.0.0:1", "http://[::]:2", "http://192.0.2.1:3", "http://[::ffff:127.0.0.1]:4"}
    loopback = {"http://127.0.0.1:5", "http://[::1]:6"}
    found = strangers(frozenset(beyond | loopback), loopback_ports=claimed)
    assert found == (beyond if claimed else beyond | loopback)


def test_a_socket_that_others_can_reach_is_a_strangers(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(path))
        address = frozenset({f"unix:{path}"})
        path.chmod(0o700)
        assert strangers(address, loopback_ports=False) == frozenset()
        path.chmod(0o777)
        tmp_path.chmod(0o755)
        assert strangers(address, loopback_ports=False) == address
        tmp_path.chmod(0o700)
        assert strangers(address, loopback_ports=False) == frozenset()
    assert strangers(frozenset({"unix:@abstract"}), loopback_ports=False) == {"unix:@abstract"}


def test_the_page_about_the_kit_has_every_row_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {name for cell in cells for name in re.findall(r"`([a-z-]+)(?:-N)?`", cell)}
    rows = (*PLAN_ROWS, *START_ROWS, RESTART_ROW, *METRIC_ROWS, *CANCEL_ROWS, *ENDING_ROWS, *REFUSED_ROWS)
    running = running_rows(a_subject())
    numbered = {"knowledge", "kill"}
    assert documented == {row.name for row in (*rows, *running, NOTHING_LEFT_ROW)} | numbered
