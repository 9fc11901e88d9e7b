"""Vendors' tools as real children: they answer, fail, hang, flood or are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelyard.hardware import tools
from modelyard.hardware.tools import Said, run_tool


def script(folder: Path, body: str) -> str:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return str(path)


def test_a_tool_that_is_not_installed_is_none() -> None:
    assert run_tool(["no-such-tool-smi", "info"]) is None


def test_a_tool_answers_in_cs_locale_and_without_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "not for tools")
    tool = script(tmp_path, 'echo "$LC_ALL-$SECRET-$1"; echo noise >&2')
    assert run_tool([tool, "info"]) == Said("C--info\n")


def test_a_tool_that_fails_is_quoted_with_what_it_said(tmp_path: Path) -> None:
    tool = script(tmp_path, "echo half; exit 9")
    assert run_tool([tool]) == Said("half\n", failed=f"{tool} ended with exit status 9")


def test_a_tool_that_hangs_costs_its_limit_and_its_children_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "TIMEOUT_S", 0.3)
    said = run_tool([script(tmp_path, "sleep 600 & sleep 600")])
    assert said is not None and said.hung
    assert said.failed is not None and said.failed.endswith("did not answer within 0.3 s")


def test_a_flood_is_cut_and_what_is_no_text_is_replaced(tmp_path: Path) -> None:
    said = run_tool([sys.executable, "-c", "import os; os.write(1, b'\\xff' + b'x' * 5_000_000)"])
    assert said is not None and said.failed is None
    assert said.text.startswith("�x") and len(said.text) <= 4 << 20


def test_a_tool_that_writes_without_end_is_ended_before_the_disk_is_full() -> None:
    endless = "import os\nwhile True: os.write(1, bytes(1 << 20))"
    said = run_tool([sys.executable, "-c", endless])
    assert said is not None and said.failed is not None and len(said.text) <= 4 << 20


def test_a_file_that_cannot_run_is_said(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"\x7fELF garbage")
    path.chmod(0o700)
    said = run_tool([str(path)])
    assert said is not None and said.failed is not None and "cannot be started" in said.failed
