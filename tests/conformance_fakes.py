"""A FakeEngine whose memory is planned, as the subject of the conformance kit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from msgspec.structs import replace

from modelyard.engines.contract import Engine, Installed
from modelyard.engines.fake import FakeAdapter
from modelyard.engines.sizing import BadSetting, Footprint, Room, SettingValue
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.plan import plan
from modelyard.records.plan import Artifact, Setting
from modelyard.spec.deployment import Deployment, Limits, Timeouts
from modelyard.testing.fake_knobs import Knobs
from modelyard.verify.conformance.row import Pace
from modelyard.verify.conformance.subject import Subject

MB = 1_000_000
WEIGHTS_BYTES = 200 * MB
CONTEXT_TOKENS = 2048
# A sound engine: slow enough to be caught at everything that it does, and like a real one in what it needs.
SOUND: dict[str, SettingValue] = {
    "startup_style": "503-with-progress",
    "startup_s": 0.2,
    "tokens": 1000,
    "token_interval_s": 0.002,
    "prefill_token_s": 0.003,
    "memory_bytes": WEIGHTS_BYTES,
    "kv_least_bytes": 64_000,
    "workers": 1,
}
PACE = Pace(prompt_tokens=600, answer_tokens=1000, idle_s=0.2, settles_s=5.0, long_prefill_s=0.5, half_dead_s=3.0)
MACHINE = Machine(
    cores=2, memory_bytes=8 << 30, available_bytes=4 << 30, cpu_model="a cpu", isa=("avx2",), os="linux", arch="x86_64"
)
INSTALLED = Installed(engine="fake", version="1", python=sys.executable, root=sys.prefix, lock_sha256="0" * 64)
ARTIFACT = Artifact(
    name="small", format="fake", path="/dev/null", sha256="1" * 64, size_bytes=WEIGHTS_BYTES, lineage="made up"
)
CARD = Card(
    format="gguf",
    architecture="fake",
    name="small",
    layers=1,
    hidden=1,
    heads=1,
    kv_heads=1,
    head_dim=1,
    value_dim=1,
    vocabulary=1,
    context_tokens=CONTEXT_TOKENS,
    parameters=1,
    weight_bytes={"F16": WEIGHTS_BYTES},
    kv_values_per_token=500,
)


class SizedFake(FakeAdapter):
    """The FakeEngine's adapter with a plan for its memory."""

    default_sequences = 4
    kv_block_tokens = 16
    whole_contexts = False
    capabilities = replace(
        FakeAdapter.capabilities,
        endpoints=FakeAdapter.capabilities.endpoints | {"/v1/messages", "/v1/responses"},
    )

    def unfit(self, card: Card) -> str | None:
        return None

    def kv_bytes_per_token(self, card: Card, overrides: Mapping[str, SettingValue]) -> int | None:
        return card.kv_bytes_per_token_f16

    def footprint(self, card: Card, context_tokens: int) -> Footprint:
        weights = card.total_weight_bytes
        return Footprint(
            memory_bytes=weights,
            memory_low_bytes=weights * 3 // 4,
            memory_high_bytes=weights * 2,
            load_s=0.3,
            load_low_s=0.2,
            load_high_s=5.0,
        )

    def settings(
        self, room: Room, overrides: Mapping[str, SettingValue], recommended: Mapping[str, SettingValue]
    ) -> tuple[Setting, ...]:
        if unknown := overrides.keys() - {field.name for field in fields(Knobs)}:
            raise BadSetting(f"{min(unknown)} is no setting of this engine", "use a knob")
        values = {"kv_cache_bytes": room.kv_cache_bytes, "max_sequences": room.max_sequences, **overrides}
        return tuple(Setting(name=name, value=value, reason="test") for name, value in values.items())


def a_subject(engine: Engine | None = None, **knobs: Any) -> Subject:
    """A sound FakeEngine but for `knobs`, or another adapter of it."""
    engine = engine or SizedFake()
    settings = {**SOUND, **knobs}
    limits = Limits(context_tokens=CONTEXT_TOKENS)
    deployment = Deployment(
        name="small",
        model="small",
        engine="fake",
        settings=settings,
        limits=limits,
        timeouts=Timeouts(startup_s=30.0),
    )
    planned = plan(deployment, ARTIFACT, CARD, MACHINE, (engine,))
    return Subject(engine, INSTALLED, deployment, planned, CARD, MACHINE)
