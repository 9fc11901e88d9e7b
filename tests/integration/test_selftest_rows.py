"""Every row of the self-test in its short form, by the command that people use: what is promised holds here and now."""

from __future__ import annotations

from pathlib import Path

from commands import Command
from modelyard.selftest.registry import ROWS

SHORT = [row.key for row in ROWS if row.short]


def test_every_row_holds_in_its_short_form(tmp_path: Path) -> None:
    command, page = Command(tmp_path / "state"), tmp_path / "guarantees.md"
    ended = command("selftest", "--short", "--json", "--write", str(page))
    told = {result["row"]: (result["verdict"], result["outcome"].get("failed")) for result in ended.value}
    assert told == {key: ("green", None) for key in SHORT}, ended
    assert ended.code == 0
    assert [key for key in SHORT if f"| {key} |" not in page.read_text()] == []
    again = command("selftest", "--short", "--resume", check=True)
    assert again.out.count(": green on ") == len(SHORT), "what is green for the same source was tried again"
