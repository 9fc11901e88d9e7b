"""`modelyard engines conformance` from outside: what it prints, writes, keeps, and ends with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands import Command
from modelyard.state import StateDirectory
from modelyard.verify.conformance.record import latest

FAKE = str(Path(__file__).parents[1] / "fake_conformance.py")


@pytest.fixture
def command(state: StateDirectory) -> Command:
    return Command(state.root, program=(FAKE,))


def test_a_green_engine_ends_with_0_and_its_result_is_kept(command: Command, state: StateDirectory) -> None:
    ended = command("engines", "conformance", "fake")
    assert ended.code == 0, ended.out
    assert "✓ cancel-prefill" in ended.out and "✗" not in ended.out
    green, rows = re.search(r"fake 1: (\d+) green of (\d+) rows in \d+ s", ended.out).groups()  # type: ignore[union-attr]
    assert green == rows
    kept = latest(state, "fake")
    assert kept is not None and kept.green


def test_a_red_engine_ends_with_7_names_the_row_and_writes_a_report(
    command: Command, state: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_TEST_KNOBS", json.dumps({"crash_at_start": "damaged-model"}))
    report = tmp_path / "report.md"
    ended = command("engines", "conformance", "fake", "--json", "--report", str(report))
    assert ended.code == 7
    assert "fake does not do what it claims: start" in ended.err
    assert {row["verdict"] for row in ended.value["rows"] if row["row"] in ("start", "chat")} == {"red", "not asked"}
    text = report.read_text()
    assert "Conformance of fake 1: red" in text and "error: the model is damaged" in text
    kept = latest(state, "fake")
    assert kept is not None and not kept.green


def test_a_report_that_cannot_be_written_is_refused_before_anything_starts(command: Command, tmp_path: Path) -> None:
    ended = command("engines", "conformance", "fake", "--report", str(tmp_path / "absent" / "report.md"))
    assert ended.code == 2 and "there is no folder" in ended.err
    assert ended.out == ""
