"""`explain`, `replay`, `audit` and `logs --events` as people and programs read them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from journal_records import answered, choice, write
from modelyard.cli import app as cli
from modelyard.cli.durations import seconds
from modelyard.clock import SYSTEM
from modelyard.control.audit_log import AuditLog
from modelyard.errors import UsageError
from modelyard.records.base import encode
from modelyard.records.journal import Attempt
from modelyard.records.keys import KeyCreated
from modelyard.records.secrets import new_key
from modelyard.state import StateDirectory, open_state


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDirectory:
    monkeypatch.setenv("MODELYARD_STATE", str(tmp_path))
    return open_state(tmp_path)


class Said:
    """What a command printed, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: StateDirectory) -> Any:
    def command(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["modelyard", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        shown = capsys.readouterr()
        return Said(int(ended.value.code or 0), shown.out, shown.err)

    return command


def test_a_request_is_explained_with_the_name_of_its_key(run: Any, state: StateDirectory) -> None:
    key = new_key("ci", 1.0).record
    state.keys.write_bytes(encode(KeyCreated(key=key)) + b"\n")
    write(state.journal, answered(1, key_id=key.id), answered(2, key_id=key.id))
    said = run("explain", answered(1).request_id)
    assert said.code == 0 and answered(1).request_id in said.out and f"key {key.id} (ci)" in said.out
    assert "took small-0: least in flight" in said.out
    assert run("explain", "--last", "--json").json["record"]["request_id"] == answered(2).request_id


def test_a_request_that_nobody_made_is_named_with_what_may_have_happened(run: Any) -> None:
    said = run("explain", "req_0000000000000000")
    assert said.code == 2 and "holds no request 'req_0000000000000000'" in said.err and "try:" in said.err
    assert run("explain").code == run("explain", "x", "--last").code == 2


def test_what_an_engine_said_cannot_steer_the_terminal(run: Any, state: StateDirectory) -> None:
    write(state.journal, answered(1, outcome="truncated", error="\x1b]0;title\x07"))
    for arguments in (("explain", "--last"), ("logs", "--events", "error"), ("logs", "--events", "error", "--json")):
        assert "\x1b" not in run(*arguments).out


def test_replay_says_that_every_choice_came_out_again(run: Any, state: StateDirectory) -> None:
    write(state.journal, *(answered(number) for number in range(1, 30)))
    said = run("replay")
    assert (said.code, said.out) == (0, "29 of 29 recorded choices lead to the same replica\n")
    assert run("replay", "--sample", "5", "--json").json["decisions"] == 5
    assert run("replay", str(next(state.journal.iterdir())), "--json").json["same"] == 29
    assert run("replay", "--since", "1h", "--json").json["decisions"] == 0
    write(state.journal, answered(30, at=time.time()))
    assert run("replay", "--since", "1h", "--json").json["decisions"] == 1


def test_replay_fails_where_a_choice_comes_out_another_way_and_shows_both(run: Any, state: StateDirectory) -> None:
    write(state.journal, answered(1), answered(2, decision=replace(choice(3, 1), replica="small-0")))
    said = run("replay")
    assert said.code == 1
    assert f"{answered(2).request_id}: recorded small-0 (least in flight); now small-1 (least in flight)" in said.out


def test_what_if_is_an_answer_and_no_failure(run: Any, state: StateDirectory) -> None:
    write(state.journal, answered(1, decision=choice(3, 5, cap=8)))
    said = run("replay", "--what-if", "cap=2")
    assert said.code == 0 and "1 of the others find no free replica" in said.out
    assert "now small-1" in run("replay", "--what-if", "without=small-0").out
    assert run("replay", "--what-if", "colour=red").code == 2


def test_events_are_shown_the_newest_last_and_as_lines_of_json(run: Any, state: StateDirectory) -> None:
    failed = Attempt(replica="small-1", launch="l", began_s=0.1, ended_s=0.2, kind="failed", cause="it closed")
    write(state.journal, answered(1), answered(2, tried=(failed,)), answered(3, stream=False))
    lines = run("logs", "--events", "access", "-n", "2").out.splitlines()
    assert [line.rpartition("req_0a1b2c3d")[2] for line in lines] == ["00000002", "00000003"]
    shown = [json.loads(line) for line in run("logs", "--events", "performance", "--json").out.splitlines()]
    assert [one.get("first_token_s") for one in shown] == [0.5, 0.5, None]
    error = run("logs", "--events", "error").out
    assert "attempt_failed: it closed" in error and "made good by another sending" in error
    assert run("logs", "small", "--events", "access").code == 2


def test_the_audit_log_is_shown_and_checked(run: Any, state: StateDirectory) -> None:
    audit = AuditLog(state, SYSTEM)
    audit.note("admin", "key-created", "0123456789ab", name="ci")
    audit.note("admin", "key-revoked", "0123456789ab")
    assert "key-created  0123456789ab  by admin  name ci" in run("logs", "--events", "audit").out
    assert run("audit").code == 0 and run("audit", "--json").json["entries"] == 2
    state.audit.write_bytes(state.audit.read_bytes().replace(b"ci", b"me"))
    said = run("audit")
    assert said.code == 7 and "line 2 of the audit log is not what was written" in said.err


@pytest.mark.parametrize(("text", "meant"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("7d", 604_800)])
def test_a_length_of_time_is_read_as_people_type_it(text: str, meant: float) -> None:
    assert seconds(text) == meant


@pytest.mark.parametrize("text", ["", "h", "1w", "-1s", "1h30m"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a length of time"):
        seconds(text)
