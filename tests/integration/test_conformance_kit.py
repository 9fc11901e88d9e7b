"""The conformance kit on a FakeEngine: all green on a sound one, each row red on one that is wrong in its way.

A row that could not turn red would prove nothing: `DEFECTS` has one for each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from conformance_fakes import PACE, SOUND, SizedFake, a_subject
from modelyard.clock import SYSTEM
from modelyard.engines.contract import EngineMetrics, ExitReport, Failure
from modelyard.engines.fake import FakeAdapter
from modelyard.engines.sizing import Footprint, SettingValue
from modelyard.models.card import Card
from modelyard.records.plan import Setting
from modelyard.testing.fake_knobs import DEFECTS
from modelyard.verify.conformance.kit import PARTS, Part, run
from modelyard.verify.conformance.record import Conformance
from modelyard.verify.conformance.subject import Subject

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Kits that run at the same time: they mostly wait.
TOGETHER = 4
AGAIN: tuple[Part, ...] = ("first launch", "again")
# Slow enough that its answers do not end within the grace of an engine that ignores SIGTERM.
SLOW = {"terminate": 0.01}
PART_OF: dict[str, tuple[Part, ...]] = {"restart": AGAIN, "kill-2": AGAIN, "bad-setting": ("refused",)}


async def tried(subject: Subject, parts: tuple[Part, ...] = PARTS) -> Conformance:
    return await run(subject, clock=SYSTEM, on_row=lambda _: None, on_outcome=lambda _: None, pace=PACE, parts=parts)


def red(result: Conformance) -> dict[str, str]:
    return {outcome.row: outcome.measured for outcome in result.red}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sound() -> Conformance:
    return await tried(a_subject())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def defective() -> Mapping[str, Conformance]:
    """What the kit finds for each defect."""
    places = asyncio.Semaphore(TOGETHER)

    async def one(defect: str) -> Conformance:
        async with places:
            knobs = {"defect": defect, "token_interval_s": SLOW.get(defect, SOUND["token_interval_s"])}
            return await tried(a_subject(**knobs), PART_OF.get(defect, ("first launch",)))

    return dict(zip(DEFECTS, await asyncio.gather(*map(one, DEFECTS)), strict=True))


async def test_a_sound_engine_is_green_in_every_row(sound: Conformance) -> None:
    assert {one.row: one.verdict for one in sound.rows if one.verdict != "green"} == {}, sound.rows
    assert sound.green and sound.tail == ()
    assert sound.effective["served_name"] == "small"


async def test_every_row_has_something_that_turns_it_red(sound: Conformance) -> None:
    of_adapters = {"start", "unknown-setting", "too-large", "kv-too-small", "memory-too-small", "kill-1"}
    assert {one.row for one in sound.rows} == set(DEFECTS) | of_adapters


@pytest.mark.parametrize("row", DEFECTS)
async def test_a_defect_turns_its_own_row_red_and_no_other(row: str, defective: Mapping[str, Conformance]) -> None:
    assert red(defective[row]).keys() == {row}, red(defective[row])
    assert not defective[row].green


async def test_what_is_red_comes_with_advice_and_the_log(defective: Mapping[str, Conformance]) -> None:
    result = defective["terminate"]
    assert result.red[0].advice and any("ignoring the signal" in line for line in result.tail)


class Permissive(SizedFake):
    """Lets every setting pass."""

    def settings(self, *_: Any, **__: Any) -> tuple[Setting, ...]:
        return ()


class Weightless(SizedFake):
    """Says that models take nothing."""

    def footprint(self, card: Card, context_tokens: int) -> Footprint:
        return replace(super().footprint(card, context_tokens), memory_high_bytes=0)


class Misreading(SizedFake):
    """Takes every end for a crash that may pass."""

    def explain_failure(self, exit: ExitReport) -> Failure:
        return replace(super().explain_failure(exit), kind="crashed", permanent=False)


class Hopeful(SizedFake):
    """Names what does not fit, and would start it again for ever."""

    def explain_failure(self, exit: ExitReport) -> Failure:
        return replace(super().explain_failure(exit), permanent=False)


class Inventing(SizedFake):
    """Reports what the engine does not: absent does not stay absent."""

    capabilities = replace(SizedFake.capabilities, metrics=SizedFake.capabilities.metrics - {"kv_used_ratio"})

    def read_metrics(self, text: str) -> EngineMetrics:
        return replace(super().read_metrics(text), kv_used_ratio=0.5)


class Modest(FakeAdapter):
    """Claims nothing but chat."""

    capabilities = replace(
        FakeAdapter.capabilities,
        endpoints=frozenset({"/v1/chat/completions"}),
        structured_output=False,
        cached_token_usage=False,
        metrics=frozenset[str](),
        load_progress=False,
    )


@pytest.mark.parametrize(
    ("engine", "knobs", "parts", "row"),
    [
        (SizedFake, {"crash_at_start": "damaged-model"}, ("first launch",), "start"),
        (Permissive, {}, ("plan",), "unknown-setting"),
        (Weightless, {}, ("plan",), "too-large"),
        (SizedFake, {"kv_least_bytes": 0}, ("refused",), "kv-too-small"),
        (Hopeful, {}, ("refused",), "bad-setting, kv-too-small"),
        (SizedFake, {"memory_bytes": 0}, ("refused",), "memory-too-small"),
        (Misreading, {}, ("first launch", "again"), "kill-1"),
        (Inventing, {}, ("first launch",), "metrics"),
    ],
)
async def test_a_wrong_adapter_turns_the_rows_red_that_rely_on_it(
    engine: type[SizedFake], knobs: dict[str, SettingValue], parts: tuple[Part, ...], row: str
) -> None:
    result = await tried(a_subject(engine(), **knobs), parts)
    assert ", ".join(red(result)) == row, red(result)


async def test_an_engine_that_does_not_start_is_asked_nothing_more() -> None:
    result = await tried(a_subject(crash_at_start="damaged-model"))
    verdicts = {one.row: one.verdict for one in result.rows}
    assert red(result).keys() == {"start"} and "the model is damaged" in red(result)["start"]
    assert {verdicts[row] for row in ("ready", "chat", "cancel-decode", "drain", "restart")} == {"not asked"}
    assert verdicts["bad-setting"] == verdicts["nothing-left"] == "green"


async def test_an_engine_that_dies_while_it_is_asked_is_red_once() -> None:
    result = await tried(a_subject(crash_on_text="London"), ("first launch",))
    assert red(result) == {}
    result = await tried(a_subject(crash_after_tokens=12), ("first launch",))
    assert red(result).keys() == {"start"}, "it dies at its first answer"


async def test_an_engine_that_stops_answering_costs_one_deadline() -> None:
    subject = a_subject(hang_after_tokens=15)
    result = await tried(replace_startup(subject, 3.0), ("first launch",))
    assert red(result).keys() == {"start"} and "not ready within 3 s" in red(result)["start"]


def replace_startup(subject: Subject, startup_s: float) -> Subject:
    replica = replace(subject.replica, startup_timeout_s=startup_s)
    return changed(subject, plan=replace(subject.plan, replicas=(replica,)))


async def test_what_an_engine_does_not_claim_is_never_green() -> None:
    result = await tried(a_subject(Modest(), workers=0))
    unclaimed = {one.row for one in result.rows if one.verdict == "not claimed"}
    assert result.green, red(result)
    assert unclaimed == {
        *("unknown-setting", "too-large", "progress", "completion", "completion-stream", "json-schema"),
        *("cached-tokens", "metrics", "metrics-load", "token-counts", "work-done", "cancel-decode", "cancel-prefill"),
        *("kv-too-small", "memory-too-small", "tokenize", "messages", "responses"),
    }


async def test_a_kit_that_is_interrupted_leaves_nothing_running() -> None:
    seen: list[str] = []
    asked = asyncio.Event()

    def on_row(row: Any) -> None:
        if row.name == "chat":
            seen.extend(shims())
            asked.set()

    before = set(shims())
    task = asyncio.create_task(
        run(a_subject(), clock=SYSTEM, on_row=on_row, on_outcome=lambda _: None, pace=PACE, parts=("first launch",))
    )
    await asked.wait()
    assert set(seen) - before, "an engine was running"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(shims()) <= before


def shims() -> list[str]:
    """The launch files of the shims that run now."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "modelyard.node.shim" in words and int(entry.name) != os.getpid():
            found.append(words[-2])
    return found
