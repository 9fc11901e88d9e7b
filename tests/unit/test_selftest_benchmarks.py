"""Rows that a benchmark of the checkout measures: what it cannot measure is no verdict, and what it did not judge is
wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.selftest import checkout
from modelyard.selftest.bench import Bench
from modelyard.selftest.row import CannotRun
from modelyard.selftest.rows import budgets
from modelyard.state import StateDirectory

BUDGET = {"row": "CPU", "metric": "m", "limit": 3.0, "compare": "over", "against": "nginx", "rounds": "median"}
REPORT: dict[str, Any] = {
    "verdicts": [{"budget": BUDGET, "judged": 2.5}],
    "unjudged": [],
    "journal_records_counted": 9,
    "foreign_cores": 0.0,
}


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, *, says: str, code: int, report: object = None) -> None:
    """A program in the place of Python's, which every benchmark is run by."""
    program = folder / "python"
    content = folder / "report.json"
    content.write_text(json.dumps(report))
    writes = f'shift $(($# - 1)); cp {content} "$1"' if report is not None else ":"
    program.write_text(f"#!/bin/sh\necho '{says}'\n{writes}\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


async def test_without_nginx_the_row_is_not_run_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says = "cannot measure: nginx is the yardstick and is not installed: apt-get install nginx-light"
    stand_in(monkeypatch, tmp_path, says=says, code=checkout.CANNOT_MEASURE)
    with pytest.raises(CannotRun, match="nginx is the yardstick") as told:
        await checkout.benchmark("gateway", "--only", "unary")
    assert "benchmarks.gateway says more" in (told.value.hint or "")


async def test_a_benchmark_that_breaks_is_no_verdict_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, says="Traceback", code=1)
    with pytest.raises(CannotRun, match="ended with 1: Traceback"):
        await checkout.benchmark("gateway")


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"verdicts": [{"budget": BUDGET, "judged": 3.1}]}, False),
        ({"unjudged": [{"row": "CPU", "limit": 3.0, "why": "nginx ended"}]}, False),
        ({"unjudged": [{"row": "told only", "limit": None, "why": "a peer is absent"}]}, True),
    ],
)
async def test_a_budget_that_is_broken_or_was_not_judged_makes_the_row_red(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: StateDirectory, changes: dict[str, Any], holds: bool
) -> None:
    stand_in(monkeypatch, tmp_path, says="a table", code=1, report={**REPORT, **changes})
    outcome = await budgets.throughput(Bench(state, seed=1, size=9, short=False))
    assert outcome.holds is holds and outcome.tried == 9


async def test_a_wrong_answer_is_red_not_something_that_could_not_be_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: StateDirectory
) -> None:
    report = {"wrong": "gateway: status 500"}
    stand_in(monkeypatch, tmp_path, says="wrong result", code=1, report=report)
    outcome = await budgets.latency(Bench(state, seed=1, size=9, short=False))
    assert not outcome.holds and outcome.failed == ("gateway: status 500",)
