"""OpenVINO GenAI behind our own server program: paged attention and continuous batching on CPUs, from wheels alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from modelyard.engines.contract import (
    Addresses,
    Capabilities,
    EngineMetrics,
    ExitReport,
    Failure,
    Installed,
    LaunchSpec,
    Progress,
    Requirements,
)
from modelyard.engines.locks import shipped
from modelyard.engines.openvino_failures import explain
from modelyard.engines.own_programs import OWN_METRICS, own_launch, read_own_metrics, read_own_progress
from modelyard.engines.sizing import BadSetting, Footprint, Room, SettingValue, check_setting, settled
from modelyard.hardware.builds import BuildNeeds
from modelyard.models.card import Card
from modelyard.records.plan import ReplicaPlan, Setting

PROGRAM = Path(__file__).parents[1] / "programs" / "openvino_server.py"
RATES_PROGRAM = PROGRAM.with_name("openvino_rates.py")

# Resident memory of both processes after prompts and answers, without the KV cache, OpenVINO 2026.4.1 with f32 on
# AVX-512: SmolLM2-135M, and the same with its layers repeated 4 and 10 times. Q4_0 76 MB of weights: 405 MB, Q4_1 97,
# 296 and 695 MB: 438, 1088 and 2397 MB, Q8_0 143 MB: 587 MB, F16 269 MB: 1449 MB. Weights are unpacked for the kernels.
_RUNTIME_BYTES = 145_000_000
_BYTES_PER_WEIGHT_BYTE = {"F16": 5.0, "F32": 2.5}
_BYTES_PER_QUANTISED_BYTE = 3.4
# A prompt of 8,000 tokens took 106 MB beside its KV cache.
_BYTES_PER_CONTEXT_TOKEN = 14_000
# 0.10, 0.30 and 0.70 GB loaded in 2.7, 7.4 and 19.3 s on two idle cores; three times as long on busy ones.
_LOAD_S, _LOAD_S_PER_BYTE = 1.0, 0.027e-6
# Other instruction sets need less unpacking, and were not measured: the interval is wide downwards.
_MEMORY_LOW, _MEMORY_HIGH, _LOAD_LOW, _LOAD_HIGH = 0.5, 1.15, 0.4, 5.0

# The CPU plugin's paged layout: in u8 every block of keys has a scale and a zero point (f32) per channel, every value
# one pair per token. Measured equal to the size that the running engine reports.
_BLOCK_TOKENS, _SCALE_AND_ZERO_BYTES = 32, 8
_KV_ELEMENT_BYTES = {"u8": 1, "f16": 2, "bf16": 2, "f32": 4}

# What its GGUF reader unpacks (its library's extract_* functions); Q5_0, BF16 and F32 matrices were refused when tried.
_WEIGHT_TYPES = frozenset({"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F16"})
# Norms are F32 in every file; matrices in F32 are more than this share of the weights.
_F32_SHARE = 0.05

_PROPERTY = re.compile(r"[A-Z][A-Z0-9_]*")
_SAID_ELSEWHERE = {
    "kv_cache_bytes": "limits.kv_cache",
    "context_tokens": "limits.context_tokens",
    "max_sequences": "limits.max_in_flight",
    "stall_s": "timeouts.hang_s",
    "model_path": "model",
    "served_name": "name",
    "INFERENCE_NUM_THREADS": "settings.threads",
    "draft_model": "speculative_tokens alone: no second model file passes the gate yet",
}
_LEAST = {"threads": 1, "max_batched_tokens": _BLOCK_TOKENS, "max_queued": 0, "speculative_tokens": 0}


class OpenVino:
    """Settings in lower case are our server's; those in capitals go to OpenVINO's CPU plugin as they are."""

    name = "openvino"
    default_sequences = 8
    kv_block_tokens = _BLOCK_TOKENS
    whole_contexts = False
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),
        # What its GGUF reader builds; others end with "Unsupported model architecture".
        architectures=frozenset({"llama", "qwen2", "qwen3"}),
        endpoints=frozenset({"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"}),
        continues_chat=True,
        unix_socket=True,
        structured_output=True,
        cached_token_usage=True,
        drains_on_terminate=False,
        ignored_fields=frozenset({"ignore_eos", "parallel_tool_calls", "reasoning_effort", "user"}),
        metrics=OWN_METRICS,
        load_progress=True,
    )
    requirements = Requirements(
        packages=(
            "numpy==2.4.6",
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
        ),
        version="2026.4.1.0",
        download_bytes=85_000_000,
        installed_bytes=264_000_000,
        import_check="openvino_genai",
        lock=shipped("openvino-cpu"),
        # It sends usage statistics; nothing imports it where it is not there.
        without=("openvino-telemetry",),
    )
    # Its wheels: manylinux for x86-64 and arm64, macOS for arm64. numpy 2.4 wants Python 3.11.
    build_needs = (
        BuildNeeds(
            build="cpu",
            machines=capabilities.machines,
            systems=frozenset({"linux", "darwin"}),
            pythons=("3.11", "3.14"),
        ),
    )

    def launch(self, replica: ReplicaPlan, install: Installed, net: Addresses) -> LaunchSpec:
        values = {setting.name: setting.value for setting in replica.settings}
        properties = {name: str(value) for name, value in values.items() if _PROPERTY.fullmatch(name)}
        ours = {name: value for name, value in values.items() if name not in properties}
        effective = {**ours, "served_name": replica.served_name, "context_tokens": replica.context_tokens}
        config = {**effective, "properties": properties}
        return own_launch(PROGRAM, replica, install, net, config, {**effective, **properties})

    def read_progress(self, line: str) -> Progress | None:
        return read_own_progress(line)

    def read_metrics(self, text: str) -> EngineMetrics:
        return read_own_metrics(text)

    def explain_failure(self, exit: ExitReport) -> Failure:
        return explain(exit)

    def gauge(self, install: Installed, threads: int, buffer_bytes: int) -> tuple[str, ...]:
        sizes = ("--threads", str(threads), "--buffer-bytes", str(buffer_bytes))
        return (install.python, "-I", str(RATES_PROGRAM), *sizes)

    def unfit(self, card: Card) -> str | None:
        if card.format != "gguf":
            return None
        allowed = _F32_SHARE * card.total_weight_bytes
        wrong = [
            f"{size / 1e6:.0f} MB of {kind}"
            for kind, size in sorted(card.weight_bytes.items())
            if kind not in _WEIGHT_TYPES and (kind != "F32" or size > allowed)
        ]
        return f"loads {', '.join(sorted(_WEIGHT_TYPES))}, not {', '.join(wrong)}" if wrong else None

    def kv_bytes_per_token(self, card: Card, overrides: Mapping[str, SettingValue]) -> int | None:
        """In u8: layers * kv_heads * (key * (1 + 8/32) + value + 8), with the lengths of a key and a value."""
        shape = (card.layers, card.kv_heads, card.head_dim, card.value_dim)
        if card.kv_values_per_token is None or None in shape:
            return None
        layers, kv_heads, key, value = (number or 0 for number in shape)
        precision = str(overrides.get("KV_CACHE_PRECISION", "u8"))
        if precision not in _KV_ELEMENT_BYTES:
            raise BadSetting(f"KV_CACHE_PRECISION is {precision!r}", f"use one of {', '.join(_KV_ELEMENT_BYTES)}")
        per_block = _BLOCK_TOKENS * (key + value) * _KV_ELEMENT_BYTES[precision]
        if precision == "u8":
            per_block += (key + _BLOCK_TOKENS) * _SCALE_AND_ZERO_BYTES
        return -(-layers * kv_heads * per_block // _BLOCK_TOKENS)

    def footprint(self, card: Card, context_tokens: int) -> Footprint:
        weights = sum(
            size * _BYTES_PER_WEIGHT_BYTE.get(kind, _BYTES_PER_QUANTISED_BYTE)
            for kind, size in card.weight_bytes.items()
        )
        memory = _RUNTIME_BYTES + weights + context_tokens * _BYTES_PER_CONTEXT_TOKEN
        load_s = _LOAD_S + card.total_weight_bytes * _LOAD_S_PER_BYTE
        return Footprint(
            memory_bytes=int(memory),
            memory_low_bytes=int(memory * _MEMORY_LOW),
            memory_high_bytes=int(memory * _MEMORY_HIGH),
            load_s=load_s,
            load_low_s=load_s * _LOAD_LOW,
            load_high_s=load_s * _LOAD_HIGH,
        )

    def settings(
        self, room: Room, overrides: Mapping[str, SettingValue], recommended: Mapping[str, SettingValue]
    ) -> tuple[Setting, ...]:
        planned = settled(_planned(room), recommended, overrides, _check)
        if planned["speculative_tokens"].value and planned["prefix_cache"].value:
            raise BadSetting(
                "speculative_tokens and prefix_cache exclude each other: a cached block might keep a rejected guess",
                "set prefix_cache: false beside it",
            )
        return tuple(planned.values())


def _check(name: str, value: SettingValue, planned: Mapping[str, Setting]) -> None:
    """OpenVINO itself refuses a property that it does not know; our own settings are checked here."""
    if name in _SAID_ELSEWHERE or not _PROPERTY.fullmatch(name):
        check_setting(name, value, planned, said_elsewhere=_SAID_ELSEWHERE, least=_LEAST)


def _planned(room: Room) -> tuple[Setting, ...]:
    return (
        Setting(
            name="threads",
            value=room.cores,
            reason="every core of the replica: with one of two cores kept busy, 2 threads reached 85 % of what 1 did",
        ),
        Setting(name="kv_cache_bytes", value=room.kv_cache_bytes, reason=room.because["kv_cache_bytes"]),
        Setting(
            name="max_batched_tokens",
            value=128,
            reason="bounds a prefill step at about 0.3 s on 2 cores: a cancelled request frees the engine within a"
            " second; costs about 10 % of the prefill rate against 512 (6.8 s, not 6.1 s, for 5,390 tokens)",
        ),
        Setting(name="max_sequences", value=room.max_sequences, reason=room.because["max_sequences"]),
        Setting(
            name="max_queued",
            value=room.max_sequences,
            reason="the gateway queues; here only a request waits whose predecessor is still giving up its seat",
        ),
        Setting(name="prefix_cache", value=True, reason="a repeated beginning of a prompt is not computed again"),
        Setting(
            name="speculative_tokens",
            value=0,
            reason="off: guessing ahead pays only where answers repeat their prompts, and excludes the prefix cache",
        ),
        Setting(name="draft_model", value="", reason="none: what is guessed is looked up in the prompt and the answer"),
        Setting(name="default_temperature", value=1.0, reason="where a request names none: OpenAI's default"),
        Setting(name="default_top_p", value=1.0, reason="where a request names none: OpenAI's default"),
        Setting(name="stall_s", value=room.hang_timeout_s, reason="the deployment's own bound for a hang"),
        Setting(
            name="INFERENCE_PRECISION_HINT",
            value="f32",
            reason="the same arithmetic on every instruction set: bf16 would be picked where AMX is",
        ),
        Setting(
            name="KV_CACHE_PRECISION",
            value="u8",
            reason="the CPU plugin's own default, pinned: under a third of f32's memory",
        ),
        Setting(
            name="DYNAMIC_QUANTIZATION_GROUP_SIZE",
            value="32",
            reason="the CPU plugin's own default, pinned: it rounds activations where VNNI or AMX is",
        ),
    )
