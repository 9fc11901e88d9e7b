"""Whether something must be made before it can be served: asked of what engines say, never of their names."""

from __future__ import annotations

import msgspec
import pytest
from cards import SMOLLM2

from modelyard.engines.registry import engine, engines
from modelyard.errors import CannotPlan
from modelyard.hardware.machine import Machine
from modelyard.planning.conversion import needed
from modelyard.planning.plan import plan
from modelyard.records.plan import Artifact
from modelyard.spec.deployment import Deployment

GGUF = Artifact(
    name="smollm2",
    format="gguf",
    path="/s/m.gguf",
    sha256="ab" * 32,
    size_bytes=98_362_432,
    lineage="fetched",
    recommended={"default_temperature": 0.2},
)
MACHINE = Machine(
    cores=2, memory_bytes=24 << 30, available_bytes=20 << 30, cpu_model="x", isa=("avx2",), os="linux", arch="x86_64"
)
CONVERTING = next(one for one in engines() if one.capabilities.conversions)


def wanted(name: str = "auto") -> Deployment:
    return Deployment(name="d", model="smollm2", engine=name)


def test_an_engine_that_takes_the_file_as_it_is_needs_nothing_made() -> None:
    assert needed(wanted(), GGUF, SMOLLM2, MACHINE, engines()) is None


def test_asking_for_an_engine_that_does_not_take_it_needs_its_own_form() -> None:
    need = needed(wanted(CONVERTING.name), GGUF, SMOLLM2, MACHINE, engines())
    assert need is not None
    assert need.engine.name == CONVERTING.name
    assert need.artifact.format in CONVERTING.capabilities.formats
    assert need.artifact.lineage == f"de-quantised from sha256 {GGUF.sha256}"
    assert need.artifact.size_bytes == need.card.total_weight_bytes == 2 * 134_515_008
    assert need.artifact.recommended == GGUF.recommended


def test_what_it_will_be_can_be_planned_before_it_is_made() -> None:
    need = needed(wanted(CONVERTING.name), GGUF, SMOLLM2, MACHINE, engines())
    assert need is not None
    (replica,) = plan(wanted(CONVERTING.name), need.artifact, need.card, MACHINE, engines()).replicas
    assert replica.engine == CONVERTING.name
    assert replica.setting("default_temperature") == 0.2


def test_it_is_not_made_for_a_machine_that_could_not_run_it() -> None:
    old = msgspec.structs.replace(MACHINE, isa=())
    assert needed(wanted(CONVERTING.name), GGUF, SMOLLM2, old, engines()) is None


def test_what_no_engine_takes_directly_goes_to_the_first_that_converts_it() -> None:
    in_f32 = msgspec.structs.replace(SMOLLM2, weight_bytes={"F32": 4 * 134_515_008}, quantisation="F32")
    need = needed(wanted(), GGUF, in_f32, MACHINE, (engine("openvino"), CONVERTING))
    assert need is not None and need.engine.name == CONVERTING.name


def test_an_architecture_that_is_not_converted_is_named_by_the_plan() -> None:
    strange = msgspec.structs.replace(SMOLLM2, architecture="gemma3")
    deployment = wanted(CONVERTING.name)
    assert needed(deployment, GGUF, strange, MACHINE, engines()) is None
    with pytest.raises(CannotPlan, match=r"it converts llama, qwen2, qwen3, not gemma3"):
        plan(deployment, GGUF, strange, MACHINE, (CONVERTING,))


def test_a_format_without_a_card_is_left_alone() -> None:
    fake = msgspec.structs.replace(GGUF, format="fake")
    assert needed(wanted("fake"), fake, None, MACHINE, engines()) is None
