"""Which request meets which fault, and what a plan refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.testing.fault_plan import KINDS, BadPlan, Fault, Plan, read_plan, written

PATH = "/v1/chat/completions"


def kinds(plan: Plan, count: int) -> list[str]:
    return [plan.fault_for(PATH, b"").kind for _ in range(count)]


def test_the_same_seed_meets_the_same_faults() -> None:
    faults = [Fault(kind="reset", share=0.3), Fault(kind="latency", share=0.5)]
    first = kinds(Plan(faults, 7), 200)
    assert first == kinds(Plan(faults, 7), 200) != kinds(Plan(faults, 8), 200)
    assert 30 < first.count("reset") < 90 and first.count("none") > 30


def test_a_fault_skips_and_ends_as_it_says() -> None:
    plan = Plan([Fault(kind="reset", skip=2, times=2)])
    assert kinds(plan, 6) == ["none", "none", "reset", "reset", "none", "none"]


def test_a_fault_is_meant_for_its_path_and_text_only() -> None:
    plan = Plan([Fault(kind="reset", path="/v1/completions", text="poison")])
    assert plan.fault_for(PATH, b"poison").kind == "none"
    assert plan.fault_for("/v1/completions", b"a good question").kind == "none"
    assert plan.fault_for("/v1/completions", b"a poison question").kind == "reset"


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"kind": "rest"}, "kind: one of none"),
        ({}, "kind"),
        ({"kind": "reset", "at_byte": -1}, "at_byte: wants a number"),
        ({"kind": "reset", "at_byte": "1"}, "at_byte: wants int"),
        ({"kind": "reset", "text": 1}, "text: wants str"),
        ({"kind": "bandwidth", "bytes_per_s": 0}, "bytes_per_s: wants at least 1"),
        ({"kind": "reset", "share": 1.5}, "share: wants at most 1"),
        ({"kind": "reset", "unknown": 1}, "unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fault: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadPlan, match=problem):
        read_plan(json.dumps({"faults": [fault]}).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b'{"faults": 1}', b'{"faults": [1]}', b'{"seed": "x"}', b"\xff"])
def test_what_is_no_plan_is_refused(text: bytes) -> None:
    with pytest.raises(BadPlan):
        read_plan(text)


@given(st.integers(0, 1000), st.floats(0, 1), st.text(max_size=10), st.one_of(st.none(), st.integers(0, 9)))
def test_a_plan_survives_being_written(at_byte: int, share: float, text: str, times: int | None) -> None:
    fault = Fault(kind="reset", at_byte=at_byte, share=share, text=text, times=times)
    plan = read_plan(json.dumps(written([fault], 3)).encode())
    assert plan.faults == (fault,)


def test_the_page_explains_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "fault-proxy.md").read_text()
    assert [f"| `{kind}` | {what} |" for kind, what in KINDS.items() if f"| `{kind}` | {what} |" not in page] == []
