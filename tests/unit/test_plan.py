"""Plans fit, say why, and name the number when nothing fits."""

from __future__ import annotations

import re

import msgspec
import pytest
from cards import SMOLLM2
from hypothesis import given
from hypothesis import strategies as st

from modelyard.engines.contract import Engine
from modelyard.engines.fake import FakeAdapter
from modelyard.engines.openvino import OpenVino
from modelyard.engines.registry import engines
from modelyard.engines.sizing import Footprint
from modelyard.errors import CannotPlan
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.memory import RESERVED_BYTES
from modelyard.planning.plan import claimed, plan
from modelyard.records.base import decode, encode
from modelyard.records.plan import Artifact, Plan, Prediction
from modelyard.spec.deployment import Deployment, Limits, Timeouts
from modelyard.spec.sizes import ByteSize, show

GIB = 1 << 30
GGUF = Artifact(name="smollm2", format="gguf", path="/s/m.gguf", sha256="0" * 64, size_bytes=98_362_432, lineage="")
FAKE = Artifact(name="fake", format="fake", path="/dev/null", sha256="0" * 64, size_bytes=0, lineage="")
# One engine that serves the artifact and one that does not.
BOTH = (OpenVino(), FakeAdapter())
MACHINE = Machine(
    cores=2, memory_bytes=24 * GIB, available_bytes=20 * GIB, cpu_model="x", isa=("avx2",), os="linux", arch="x86_64"
)


def wanted(**changes: object) -> Deployment:
    return msgspec.structs.replace(Deployment(name="d", model="smollm2"), **changes)


def planned(
    deployment: Deployment,
    *,
    memory_bytes: int = 24 * GIB,
    cores: int = 2,
    card: Card = SMOLLM2,
    among: tuple[Engine, ...] = BOTH,
) -> Plan:
    machine = msgspec.structs.replace(MACHINE, memory_bytes=memory_bytes, cores=cores)
    return plan(deployment, GGUF, card, machine, among)


def predicted(made: Plan, what: str) -> Prediction:
    return next(one for one in made.predictions if one.what.startswith(what))


def test_the_default_plan_gives_every_sequence_its_whole_context() -> None:
    made = planned(wanted())
    (replica,) = made.replicas
    assert (replica.name, replica.engine, replica.served_name) == ("d-0", "openvino", "d")
    assert (replica.context_tokens, replica.max_in_flight) == (8192, 8)
    assert replica.setting("max_sequences") == 8
    assert replica.setting("threads") == 2
    assert replica.setting("kv_cache_bytes") == 8 * 8192 * 13_680


def test_what_the_authors_of_a_model_recommend_is_planned_and_the_operator_wins() -> None:
    advised = msgspec.structs.replace(
        GGUF, recommended={"default_temperature": 0.2, "default_top_p": 0.9, "other": 1.0}
    )
    (replica,) = plan(wanted(settings={"default_top_p": 1}), advised, SMOLLM2, MACHINE, BOTH).replicas
    assert replica.setting("default_temperature") == 0.2
    assert replica.setting("default_top_p") == 1
    assert "other" not in {setting.name for setting in replica.settings}


def test_kv_bytes_per_token_are_what_the_running_engine_reported() -> None:
    # 100 blocks of 32 tokens were 43,776,000 bytes in u8 (OpenVINO GenAI 2026.4.1, SmolLM2-135M).
    assert predicted(planned(wanted()), "KV cache per token").value == 43_776_000 / 3200


@pytest.mark.parametrize(
    ("weight_bytes", "measured_mb"),
    [
        ({"Q4_0": 75_775_000}, 405),
        ({"Q4_1": 66_355_200, "Q8_0": 30_081_024, "F32": 140_544}, 438),
        ({"Q4_1": 265_420_800, "Q8_0": 30_081_024, "F32": 562_176}, 1088),
        ({"Q4_1": 663_552_000, "Q8_0": 30_081_024, "F32": 1_405_440}, 2397),
        ({"Q8_0": 142_920_000, "F32": 140_544}, 587),
        ({"F16": 268_900_000, "F32": 140_544}, 1449),
    ],
)
def test_the_memory_that_was_measured_lies_in_the_predicted_interval(
    weight_bytes: dict[str, int], measured_mb: int
) -> None:
    """Prompts of 500 tokens, so the footprint of a short context, plus 24 MB of the HTTP process."""
    foot = OpenVino().footprint(msgspec.structs.replace(SMOLLM2, weight_bytes=weight_bytes), 500)
    measured = (measured_mb + 24) * 1e6
    assert foot.memory_low_bytes < measured < foot.memory_high_bytes
    assert abs(foot.memory_bytes / measured - 1) < 0.15


def test_every_setting_has_a_reason_and_so_has_every_rejected_engine() -> None:
    made = planned(wanted(settings={"threads": 1, "ENABLE_CPU_PINNING": "NO"}))
    assert [one.name for one in made.replicas[0].settings if not one.reason] == []
    assert {one.what: one.reason for one in made.rejected} == {"engine fake": "serves fake, not gguf"}


def test_the_operators_settings_win_and_stand_in_the_plan() -> None:
    replica = planned(wanted(settings={"threads": 1, "KV_CACHE_PRECISION": "f16", "NUM_STREAMS": "1"})).replicas[0]
    assert (replica.setting("threads"), replica.setting("NUM_STREAMS")) == (1, "1")
    assert replica.setting("kv_cache_bytes") == 8 * 8192 * 30 * 3 * 128 * 2


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"thread": 1}, "thread is no setting", "threads"),
        ({"threads": "two"}, "threads is 'two'", "such as 2"),
        ({"threads": True}, "threads is True", "such as 2"),
        ({"threads": 0}, "threads is 0", "at least 1"),
        ({"max_batched_tokens": 31}, "max_batched_tokens is 31", "at least 32"),
        ({"kv_cache_bytes": 1}, "kv_cache_bytes is not set under settings", "limits.kv_cache"),
        ({"speculative_tokens": 3}, "speculative_tokens and prefix_cache exclude each other", "prefix_cache: false"),
        ({"draft_model": "x.gguf"}, "draft_model is not set under settings", "speculative_tokens alone"),
        ({"KV_CACHE_PRECISION": "u7"}, "KV_CACHE_PRECISION is 'u7'", "u8"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_starts(
    settings: dict[str, str | int], says: str, hint: str
) -> None:
    with pytest.raises(CannotPlan) as caught:
        planned(wanted(settings=settings))
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_strict_isolation_goes_without_a_prefix_cache_where_the_engine_cannot_keep_keys_apart() -> None:
    def cached(**changes: object) -> object:
        return planned(wanted(**changes)).replicas[0].setting("prefix_cache")

    assert cached(isolation="salted") is True
    assert cached(isolation="strict") is False
    with pytest.raises(CannotPlan, match="exclude each other") as caught:
        cached(isolation="strict", settings={"prefix_cache": True})
    assert "isolation: salted" in caught.value.hint


def test_a_longer_context_than_the_model_has_is_cut_and_said() -> None:
    made = planned(wanted(limits=Limits(context_tokens=100_000)))
    assert made.replicas[0].context_tokens == 8192
    assert any("100000" in one.what and "8192" in one.reason for one in made.rejected)


def test_on_a_small_machine_concurrency_falls_before_the_context() -> None:
    replica = planned(wanted(), memory_bytes=GIB + GIB // 4).replicas[0]
    assert replica.context_tokens == 8192
    assert 1 <= replica.max_in_flight < 8


def test_on_a_smaller_machine_the_context_falls_too_and_it_is_said() -> None:
    made = planned(wanted(), memory_bytes=900 << 20)
    assert 256 <= made.replicas[0].context_tokens < 8192
    assert made.replicas[0].max_in_flight >= 1
    assert any("8192" in one.what for one in made.rejected)


def test_a_model_that_does_not_fit_names_both_numbers() -> None:
    with pytest.raises(CannotPlan, match=r"takes up to .* MiB and its KV cache .* more than .* MiB \(this machine\)"):
        planned(wanted(), memory_bytes=600 << 20)


def test_an_asked_context_that_does_not_fit_is_refused_with_one_that_does() -> None:
    limits = Limits(context_tokens=8192, memory=ByteSize(700 << 20))
    with pytest.raises(CannotPlan, match=r"limits\.memory") as caught:
        planned(wanted(limits=limits))
    fitting = int(caught.value.hint.split()[3])
    assert 0 < fitting < 8192
    retry = wanted(limits=Limits(context_tokens=fitting, memory=ByteSize(700 << 20)))
    assert planned(retry).replicas[0].context_tokens == fitting


def test_a_kv_cache_below_one_context_is_refused_with_the_size_that_is_needed() -> None:
    with pytest.raises(CannotPlan, match="one context of 8192 tokens needs 107 MiB") as caught:
        planned(wanted(limits=Limits(context_tokens=8192, kv_cache=ByteSize(64 << 20))))
    assert "raise limits.kv_cache to 107 MiB" in caught.value.hint


def test_more_requests_than_whole_contexts_are_allowed_and_said() -> None:
    replica = planned(wanted(limits=Limits(max_in_flight=16, kv_cache=ByteSize(300 << 20)))).replicas[0]
    assert replica.max_in_flight == 16
    reason = next(one.reason for one in replica.settings if one.name == "kv_cache_bytes")
    assert "2 of 16 requests" in reason


def test_replicas_share_cores_and_memory() -> None:
    one, two = planned(wanted(), cores=8), planned(wanted(replicas=2), cores=8)
    assert [replica.name for replica in two.replicas] == ["d-0", "d-1"]
    assert (one.replicas[0].setting("threads"), two.replicas[0].setting("threads")) == (8, 4)


def test_timeouts_come_from_the_deployment_and_startup_from_the_load() -> None:
    timeouts = Timeouts(startup_s=7, drain_s=8, hang_s=9)
    replica = planned(wanted(timeouts=timeouts)).replicas[0]
    assert (replica.startup_timeout_s, replica.drain_timeout_s, replica.hang_timeout_s) == (7, 8, 9)
    assert replica.setting("stall_s") == 9
    made = planned(wanted())
    assert made.replicas[0].startup_timeout_s > 4 * predicted(made, "load").high - 1


def test_an_unknown_architecture_is_refused_by_every_engine_with_its_reason() -> None:
    says = r"openvino: serves llama, qwen2, qwen3, not gemma99; llama.cpp: serves .* and \d+ more, not gemma99; vllm: "
    with pytest.raises(CannotPlan, match=says):
        planned(wanted(), card=msgspec.structs.replace(SMOLLM2, architecture="gemma99"), among=engines())


def test_an_architecture_or_a_weight_type_that_one_engine_does_not_take_goes_to_the_next() -> None:
    for change in ({"architecture": "gemma"}, {"weight_bytes": {"Q5_K": 90_000_000}}):
        made = planned(wanted(), card=msgspec.structs.replace(SMOLLM2, **change), among=engines())
        assert made.replicas[0].engine == "llama.cpp"
        assert made.rejected[0].what == "engine openvino"


@pytest.mark.parametrize(
    ("weight_bytes", "says"),
    [
        ({"Q5_0": 90_000_000, "F32": 140_544}, "not 90 MB of Q5_0"),
        ({"Q4_K": 90_000_000, "Q5_K": 9_000_000}, "not 9 MB of Q5_K"),
        ({"F32": 540_000_000}, "not 540 MB of F32"),
        ({"BF16": 270_000_000, "F32": 140_544}, "not 270 MB of BF16"),
    ],
)
def test_weights_that_the_engine_cannot_load_are_refused_before_it_starts(
    weight_bytes: dict[str, int], says: str
) -> None:
    with pytest.raises(CannotPlan) as caught:
        planned(wanted(engine="openvino"), card=msgspec.structs.replace(SMOLLM2, weight_bytes=weight_bytes))
    assert says in caught.value.message


class Roomier(OpenVino):
    """Like OpenVINO in a tenth of the memory, and on newer processors only."""

    name = "roomier"
    capabilities = msgspec.structs.replace(OpenVino.capabilities, machines={"x86_64": frozenset({"avx2", "amx_int8"})})

    def footprint(self, card: Card, context_tokens: int) -> Footprint:
        foot = super().footprint(card, context_tokens)
        tenth = {name: getattr(foot, name) // 10 for name in foot.__struct_fields__ if name.startswith("memory")}
        return msgspec.structs.replace(foot, **tenth)


NEWER = msgspec.structs.replace(MACHINE, isa=("amx_int8", "avx2"))


def test_the_preferred_engine_is_taken_and_the_other_one_told_with_what_it_would_take() -> None:
    made = plan(wanted(), GGUF, SMOLLM2, NEWER, (OpenVino(), Roomier()))
    assert made.replicas[0].engine == "openvino"
    (second,) = made.rejected
    memory = predicted(plan(wanted(engine="roomier"), GGUF, SMOLLM2, NEWER, (Roomier(),)), "memory")
    assert second.reason == f"openvino comes first in the order of preference; it would take {show(memory.value)}"


def test_where_the_preferred_engine_does_not_fit_the_next_one_is_taken_and_the_number_is_told() -> None:
    small = msgspec.structs.replace(NEWER, memory_bytes=600 << 20)
    made = plan(wanted(), GGUF, SMOLLM2, small, (OpenVino(), Roomier()))
    assert made.replicas[0].engine == "roomier"
    assert made.rejected[0].what == "engine openvino" and "together more than 344 MiB" in made.rejected[0].reason


def test_where_nothing_fits_the_preferred_engine_tells_what_to_change_and_the_others_follow() -> None:
    tiny = msgspec.structs.replace(NEWER, memory_bytes=300 << 20)
    with pytest.raises(CannotPlan) as caught:
        plan(wanted(), GGUF, SMOLLM2, tiny, (OpenVino(), Roomier()))
    one = "d: the model takes up to .*"
    assert re.fullmatch(rf"{one} \(roomier: {one}\)", caught.value.message)
    assert "smaller or more strongly quantised model" in caught.value.hint


def test_a_named_engine_that_does_not_fit_is_refused_alone() -> None:
    small = msgspec.structs.replace(NEWER, memory_bytes=600 << 20)
    with pytest.raises(CannotPlan) as caught:
        plan(wanted(engine="openvino"), GGUF, SMOLLM2, small, (OpenVino(), Roomier()))
    assert "roomier" not in caught.value.message


@pytest.mark.parametrize(
    ("arch", "isa", "says"),
    [
        ("x86_64", ("avx2",), "roomier: needs a processor with amx_int8"),
        ("x86_64", (), "roomier: needs a processor with amx_int8, avx2"),
        ("riscv64", ("avx2",), "roomier: runs on x86_64, not on riscv64"),
    ],
)
def test_an_engine_is_not_planned_for_a_processor_that_it_does_not_run_on(
    arch: str, isa: tuple[str, ...], says: str
) -> None:
    machine = msgspec.structs.replace(MACHINE, arch=arch, isa=isa)
    with pytest.raises(CannotPlan) as caught:
        plan(wanted(), GGUF, SMOLLM2, machine, (Roomier(),))
    assert says in caught.value.message


def test_what_other_deployments_take_is_not_planned_again() -> None:
    alone = planned(wanted())
    taken = claimed((alone, planned(wanted(name="two", replicas=2))))
    assert taken == predicted(alone, "memory").high + 2 * predicted(planned(wanted(replicas=2)), "memory").high
    with pytest.raises(CannotPlan, match=r"more than 344 MiB \(this machine without the .* of other deployments\)"):
        plan(wanted(), GGUF, SMOLLM2, msgspec.structs.replace(MACHINE, memory_bytes=taken + (600 << 20)), BOTH,
             claimed_bytes=taken)  # fmt: skip


def test_a_named_engine_is_taken_or_refused_never_replaced() -> None:
    with pytest.raises(CannotPlan, match="the deployment asks for vllm"):
        planned(wanted(engine="vllm"))


def test_a_card_that_does_not_tell_its_kv_cache_is_refused_with_its_words() -> None:
    card = msgspec.structs.replace(SMOLLM2, kv_values_per_token=None, kv_unknown_because="it keeps a state")
    with pytest.raises(CannotPlan, match=r"KV cache is unknown \(it keeps a state\)"):
        planned(wanted(), card=card)


def test_on_a_machine_with_avx2_the_packaged_model_could_run_on_every_engine_that_takes_its_format() -> None:
    made = plan(wanted(), GGUF, SMOLLM2, MACHINE, engines())
    assert made.replicas[0].engine == "openvino"
    reasons = {one.what: one.reason for one in made.rejected}
    assert reasons["engine llama.cpp"].startswith("openvino comes first in the order of preference; it would take ")
    assert reasons["engine vllm"].startswith("serves huggingface, not gguf")


def test_llama_cpp_leaves_a_core_to_the_others_and_openvino_takes_all() -> None:
    def threads(engine: str) -> object:
        return plan(wanted(engine=engine), GGUF, SMOLLM2, MACHINE, engines()).replicas[0].setting("threads")

    assert (threads("llama.cpp"), threads("openvino")) == (1, 2)


def test_an_engine_without_a_card_gets_the_operators_settings_and_nothing_else() -> None:
    deployment = wanted(settings={"start_s": 0.1}, limits=Limits(max_in_flight=3, context_tokens=99))
    (replica,) = plan(deployment, FAKE, None, MACHINE, BOTH).replicas
    assert (replica.engine, replica.max_in_flight, replica.context_tokens) == (FakeAdapter.name, 3, 99)
    assert [(one.name, one.value) for one in replica.settings] == [("start_s", 0.1)]


optional = st.one_of
machine_bytes = st.one_of(st.integers(1 * GIB, 64 * GIB), st.integers(0, 2 * GIB))
limits_of_any_size = st.builds(
    Limits,
    context_tokens=optional(st.none(), st.integers(1, 20_000)),
    max_in_flight=optional(st.none(), st.integers(1, 100)),
    kv_cache=optional(st.none(), st.integers(32 << 20, 8 * GIB).map(ByteSize)),
    memory=optional(st.none(), st.integers(512 << 20, 32 * GIB).map(ByteSize)),
)


@given(limits_of_any_size, machine_bytes, st.integers(1, 5))
def test_whatever_is_asked_a_plan_never_takes_more_than_the_memory_there_is(
    limits: Limits, memory_bytes: int, replicas: int
) -> None:
    try:
        made = planned(wanted(limits=limits, replicas=replicas), memory_bytes=memory_bytes)
    except CannotPlan as error:
        assert error.hint
        return
    most = predicted(made, "memory").high * replicas
    assert most <= min(memory_bytes - RESERVED_BYTES, limits.memory or memory_bytes)
    replica = made.replicas[0]
    kv_bytes = replica.setting("kv_cache_bytes")
    assert kv_bytes >= replica.context_tokens * 13_680
    assert replica.max_in_flight == replica.setting("max_sequences") >= 1
    assert all(one.reason for one in replica.settings)
    if limits.max_in_flight is None:
        assert kv_bytes >= replica.max_in_flight * replica.context_tokens * 13_680


@given(limits_of_any_size, machine_bytes, st.integers(1, 8 * GIB))
def test_more_memory_never_makes_a_plan_worse(limits: Limits, memory_bytes: int, more_bytes: int) -> None:
    try:
        small = planned(wanted(limits=limits), memory_bytes=memory_bytes).replicas[0]
    except CannotPlan:
        return
    large = planned(wanted(limits=limits), memory_bytes=memory_bytes + more_bytes).replicas[0]
    assert large.context_tokens >= small.context_tokens
    if large.context_tokens == small.context_tokens:
        assert large.max_in_flight >= small.max_in_flight
        assert large.setting("kv_cache_bytes") >= small.setting("kv_cache_bytes")


@given(st.integers(1, 8192), st.integers(1, 8192), st.integers(1, 64), st.integers(1, 64))
def test_memory_rises_with_context_and_with_concurrency(a: int, b: int, m: int, n: int) -> None:
    small = planned(wanted(limits=Limits(context_tokens=min(a, b), max_in_flight=min(m, n))), memory_bytes=999 * GIB)
    large = planned(wanted(limits=Limits(context_tokens=max(a, b), max_in_flight=max(m, n))), memory_bytes=999 * GIB)
    for part in ("value", "low", "high"):
        assert getattr(predicted(small, "memory"), part) <= getattr(predicted(large, "memory"), part)


def test_a_plan_with_every_limit_can_be_written_down() -> None:
    limits = Limits(kv_cache=ByteSize(GIB), memory=ByteSize(8 * GIB), context_tokens=2048, max_in_flight=2)
    made = planned(wanted(limits=limits))
    assert decode(encode(made), Plan) == made


def on_llama_cpp(limits: Limits) -> Plan:
    return plan(wanted(engine="llama.cpp", limits=limits), GGUF, SMOLLM2, MACHINE, engines())


def test_an_engine_that_keeps_whole_contexts_serves_no_more_requests_than_fit() -> None:
    (replica,) = on_llama_cpp(Limits(max_in_flight=16, context_tokens=8192, kv_cache=ByteSize(GIB))).replicas
    assert replica.max_in_flight == replica.setting("max_sequences") == GIB // (8192 * 23_040) == 5
    reason = next(one.reason for one in replica.settings if one.name == "max_sequences")
    assert "5 whole contexts" in reason


def test_a_context_takes_the_memory_of_the_slot_that_holds_it() -> None:
    made = on_llama_cpp(Limits(max_in_flight=2, context_tokens=1000))
    assert [one.value for one in made.predictions if one.what == "KV cache"] == [2 * 1024 * 23_040]
