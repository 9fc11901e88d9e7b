"""Verification of a real child process over its own socket, sound and misbehaving."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.clock import SYSTEM
from modelyard.engines.fake import FakeAdapter
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.records.fingerprint import Fingerprint
from modelyard.state import StateDirectory
from modelyard.testing.fake_child import FakeEngine
from modelyard.verify.evidence import latest, save, still_proved
from modelyard.verify.report import Report, explain
from modelyard.verify.run import SMOKE, Target, required_checks, verify

HERE = Fingerprint(artifact="a", engine="e", configuration="c", machine="m")
PROBES = (
    KnowledgeProbe(kind="chat", prompt="What is the capital of Japan?", expected="Tokyo", margin=0.67),
    KnowledgeProbe(kind="chat", prompt="What is the capital of Greece?", expected="Athens", margin=0.60),
    KnowledgeProbe(kind="completion", prompt="The capital of France is", expected="Paris", margin=0.94),
)


def target(engine: FakeEngine) -> Target:
    return Target("small", engine.address, "fake", FakeAdapter.capabilities, engine.knobs.context_tokens, HERE, PROBES)


async def verified(engine: FakeEngine, **options: Any) -> Report:
    return await verify(target(engine), clock=SYSTEM, on_result=lambda _: None, **options)


def red(report: Report) -> set[str]:
    return {evidence.check for evidence in report.red}


@pytest.mark.parametrize("address", ["", "127.0.0.1:0"], ids=["unix", "tcp"])
async def test_a_sound_engine_is_proved_and_stays_proved_on_disk(state: StateDirectory, address: str) -> None:
    async with FakeEngine(**({"address": address} if address else {})) as engine:
        report = await verified(engine)
        required = required_checks(target(engine))
    assert report.green, explain(report)
    assert report.skipped == ()
    save(state, report)
    found, now = latest(state, "small"), SYSTEM.wall()
    assert still_proved(found, required, HERE, now)
    assert not still_proved(found, required, HERE, now + 8 * 24 * 3600)


async def test_a_model_that_lost_its_knowledge_is_red_in_the_probes_alone() -> None:
    async with FakeEngine(facts=False) as engine:
        assert red(await verified(engine)) == {"knowledge-1", "knowledge-2", "knowledge-3"}
        assert red(await verified(engine, only=SMOKE)) == {"knowledge-1"}


async def test_truncated_streams_and_answers_are_red() -> None:
    async with FakeEngine(truncate_after_tokens=3) as engine:
        report = await verified(engine)
    assert {"chat", "chat-stream", "stop", "max-tokens", "usage"} <= red(report)
    assert red(report).isdisjoint({"unknown-model", "malformed-json", "context"})


async def test_an_engine_that_hangs_behind_a_healthy_face_is_red_not_a_hang() -> None:
    async with FakeEngine(hang_after_tokens=2, healthy_while_hung=True) as engine:
        report = await verified(engine, deadline_s=0.5)
    assert red(report) == {"chat"} and len(report.skipped) == len(required_checks(target(engine))) - 1


async def test_an_engine_that_dies_during_verification_is_red() -> None:
    async with FakeEngine(crash_after_tokens=7) as engine:
        report = await verified(engine)
    assert "chat-stream" in red(report) and not report.green
    assert "chat" not in red(report)


async def test_verification_leaves_nothing_running_in_the_engine() -> None:
    async with FakeEngine() as engine:
        await verified(engine)
        counters = (await engine.seen())["counters"]
    assert (counters["running"], counters["waiting"], counters["cancelled"]) == (0, 0, 0)
