"""Each real engine does here what its adapter claims: the kit, as `modelyard engines conformance` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Command
from modelyard.records.plan import Artifact
from modelyard.state import StateDirectory

# vLLM is started once for each of its processes, half a minute each.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

# What an engine does not promise stands here, so that a promise that is dropped is noticed.
NOT_CLAIMED: dict[str, set[str]] = {
    # Messages and responses are translated for both.
    "openvino": {"messages", "responses"},
    # Its KV cache follows from its context and its sequences.
    "llama.cpp": {"kv-too-small", "messages", "responses"},
    "vllm": set(),
}


@pytest.mark.parametrize(("name", "fixture"), [("openvino", "openvino"), ("llama.cpp", "llamacpp"), ("vllm", "vllm")])
def test_an_engine_does_what_it_claims(
    name: str,
    fixture: str,
    request: pytest.FixtureRequest,
    smollm2: Artifact,
    kept_state: StateDirectory,
    tmp_path: Path,
) -> None:
    installed, report = request.getfixturevalue(fixture), tmp_path / "report.md"
    command = Command(kept_state.root, timeout_s=840)
    ended = command("engines", "conformance", name, "--report", str(report), "--json")
    assert ended.code == 0, report.read_text() if report.exists() else ended.err
    rows = {row["row"]: row["verdict"] for row in ended.value["rows"]}
    assert {row for row, verdict in rows.items() if verdict == "not claimed"} == NOT_CLAIMED[name]
    assert {row for row, verdict in rows.items() if verdict == "not asked"} == set()
    assert f"Conformance of {name} {installed.version}: green" in report.read_text()
    (listed,) = [one for one in command("engines", "list", "--json").value if one["name"] == name]
    assert listed["installed"]["lock_sha256"] == ended.value["lock_sha256"]
