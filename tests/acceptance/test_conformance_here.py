"""Each real engine does here what its adapter claims: the kit, as `modelyard engines conformance` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Command
from modelyard.engines.contract import Installed
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory

pytestmark = pytest.mark.acceptance

# What an engine does not promise is listed here, so that a promise that is dropped is noticed.
NOT_CLAIMED: dict[str, set[str]] = {"openvino": set()}


def tried(name: str, state: StateDirectory, report: Path) -> dict[str, str]:
    """Every row with its verdict; the test fails with what is red."""
    ended = Command(state.root)("engines", "conformance", name, "--report", str(report), "--json")
    assert ended.code == 0, report.read_text() if report.exists() else ended.err
    return {row["row"]: row["verdict"] for row in ended.value["rows"]}


def test_openvino_does_what_it_claims(
    openvino: Installed, smollm2: Artifact, kept_state: StateDirectory, tmp_path: Path
) -> None:
    rows = tried("openvino", kept_state, tmp_path / "report.md")
    assert {row for row, verdict in rows.items() if verdict == "not claimed"} == NOT_CLAIMED["openvino"]
    assert {row for row, verdict in rows.items() if verdict == "not asked"} == set()
    listed = Command(kept_state.root)("engines", "list")
    assert "20" in next(line for line in listed.out.splitlines() if line.startswith("openvino")).split()[-1]
    assert (
        openvino.version in (tmp_path / "report.md").read_text()
        and smollm2.sha256 in (tmp_path / "report.md").read_text()
    )
