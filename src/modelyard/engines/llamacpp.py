"""llama.cpp's own server, from a wheel, behind a small program of ours: any GGUF file on any CPU."""

from __future__ import annotations

import math
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
from modelyard.engines.llamacpp_architectures import ARCHITECTURES
from modelyard.engines.llamacpp_failures import explain
from modelyard.engines.locks import shipped
from modelyard.engines.own_programs import own_launch, read_own_progress
from modelyard.engines.prometheus_text import parse, total
from modelyard.engines.sizing import BadSetting, Footprint, Room, SettingValue, check_setting, settled
from modelyard.hardware.builds import BuildNeeds
from modelyard.models.card import Card
from modelyard.models.ggml_types import TENSOR_TYPES
from modelyard.records.plan import ReplicaPlan, Setting

PROGRAM = Path(__file__).parents[1] / "programs" / "llamacpp_server.py"
# Where the two processes of the program meet, in the launch's folder.
SOCKET_NAME = "llama.sock"

# Resident memory of both processes after a prompt of 1,500 tokens, without the KV cache, xllamacpp 2026.10.11549 on
# AVX2: SmolLM2-135M in Q4_1 (98 MB of file) 187 MB, Q8_0 (145) 233, F16 (271) 359, Q4_0 (78) 240; its layers four times
# in Q4_1 (286) 381, in Q8_0 (484) 580. Files are mapped, so their bytes count once and the kernel may drop them; types
# that are laid out anew for the kernels count twice. More context and slots took nothing beside their KV cache.
_RUNTIME_BYTES = 90_000_000
_REPACKED = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL"})
# 0.1, 0.3 and 0.5 GB were ready after 2.1, 2.9 and 3.8 s with every core busy. A file that is not in the kernel's cache
# comes from the disk.
_LOAD_S, _LOAD_S_PER_BYTE = 1.5, 4.5e-9
_MEMORY_LOW, _MEMORY_HIGH, _LOAD_LOW, _LOAD_HIGH = 0.4, 1.2, 0.3, 5.0

# llama.cpp pads the KV cache of a slot to so many cells.
_SLOT_TOKENS = 256
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_ELEMENT_BYTES = {
    kind.name.lower(): kind.block_bytes / kind.block_elements
    for kind in TENSOR_TYPES.values()
    if kind.name.lower() in _CACHE_TYPES
}
_SAID_ELSEWHERE = {
    "kv_cache_bytes": "limits.kv_cache",
    "context_tokens": "limits.context_tokens",
    "max_sequences": "limits.max_in_flight",
    "model_path": "model",
    "served_name": "name",
    "draft_model": "speculative_tokens alone: no second model file passes the gate yet",
}
_MAX_SEQUENCES = 256
_UNQUANTISED = ("f32", "f16", "bf16")
_LEAST = {"threads": 1, "max_batched_tokens": 1, "max_queued": 0, "speculative_tokens": 0}
_WAITING = "thread_waiting"
_ONE_OF = {
    _WAITING: ("passive", "active"),
    "cache_type_k": _CACHE_TYPES,
    "cache_type_v": _CACHE_TYPES,
    "flash_attention": ("on", "off"),
}


class LlamaCpp:
    """A file is served as its header says; nothing is fetched or converted."""

    name = "llama.cpp"
    default_sequences = 8
    kv_block_tokens = _SLOT_TOKENS
    whole_contexts = True
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),
        architectures=ARCHITECTURES,
        endpoints=frozenset({"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"}),
        reasoning_field="reasoning_content",
        continues_chat=True,
        unix_socket=True,
        structured_output=True,
        cached_token_usage=True,
        drains_on_terminate=False,
        ignored_fields=frozenset({"reasoning_effort", "user"}),
        metrics=frozenset({"running", "waiting", "work_done", "prompt_tokens", "generated_tokens"}),
        load_progress=True,
        # What the wheels were built for, by their own word; they know no other kernels.
        machines={"x86_64": frozenset({"avx2"}), "aarch64": frozenset()},
    )
    requirements = Requirements(
        packages=("xllamacpp==2026.10.11549",),
        version="2026.10.11549",
        download_bytes=34_000_000,
        installed_bytes=107_000_000,
        import_check="xllamacpp",
        lock=shipped("llama.cpp-cpu"),
    )
    # Its wheels are for Python's stable interface: every version from 3.10 on.
    build_needs = (
        BuildNeeds(
            build="cpu",
            machines=capabilities.machines,
            systems=frozenset({"linux", "darwin"}),
            pythons=("3.11", "3.14"),
        ),
    )

    def launch(self, replica: ReplicaPlan, install: Installed, net: Addresses) -> LaunchSpec:
        settings = {setting.name: setting.value for setting in replica.settings}
        effective = {**settings, "served_name": replica.served_name, "context_tokens": replica.context_tokens}
        return own_launch(
            PROGRAM,
            replica,
            install,
            net,
            {name: value for name, value in effective.items() if name != _WAITING},
            effective,
            environ={
                # Else it starts a debugger on itself when it gives up, and floods the log.
                "GGML_NO_BACKTRACE": "1",
                "OMP_WAIT_POLICY": str(settings[_WAITING]),
            },
            sockets=(SOCKET_NAME,),
        )

    def read_progress(self, line: str) -> Progress | None:
        return read_own_progress(line)

    def read_metrics(self, text: str) -> EngineMetrics:
        """llama.cpp's own series; it does not say how full its KV cache is."""
        samples = parse(text)
        return EngineMetrics(
            running=total(samples, "llamacpp:requests_processing"),
            waiting=total(samples, "llamacpp:requests_deferred"),
            work_done=total(samples, "llamacpp:n_decode_total"),
            prompt_tokens=total(samples, "llamacpp:prompt_tokens_total"),
            generated_tokens=total(samples, "llamacpp:tokens_predicted_total"),
        )

    def explain_failure(self, exit: ExitReport) -> Failure:
        return explain(exit)

    def unfit(self, card: Card) -> str | None:
        return None

    def kv_bytes_per_token(self, card: Card, overrides: Mapping[str, SettingValue]) -> int | None:
        """layers * kv_heads * (key * bytes of a key's element + value * bytes of a value's), in F16 unless set.

        Where some layers keep less (a sliding window, another kind of attention) this is the most that it can be."""
        types = {name: str(overrides.get(name, "f16")) for name in ("cache_type_k", "cache_type_v")}
        for name, value in types.items():
            _check_choice(name, value)
        shape = (card.layers, card.kv_heads, card.head_dim, card.value_dim)
        if None in shape or not card.kv_heads:
            return None
        layers, kv_heads, key, value_dim = (number or 0 for number in shape)
        per_head = key * _ELEMENT_BYTES[types["cache_type_k"]] + value_dim * _ELEMENT_BYTES[types["cache_type_v"]]
        return math.ceil(layers * kv_heads * per_head)

    def footprint(self, card: Card, context_tokens: int) -> Footprint:
        weights = sum(size * (2 if kind in _REPACKED else 1) for kind, size in card.weight_bytes.items())
        memory = _RUNTIME_BYTES + weights
        load_s = _LOAD_S + card.total_weight_bytes * _LOAD_S_PER_BYTE
        return Footprint(
            memory_bytes=memory,
            memory_low_bytes=int(memory * _MEMORY_LOW),
            memory_high_bytes=int(memory * _MEMORY_HIGH),
            load_s=load_s,
            load_low_s=load_s * _LOAD_LOW,
            load_high_s=load_s * _LOAD_HIGH,
        )

    def settings(
        self, room: Room, overrides: Mapping[str, SettingValue], recommended: Mapping[str, SettingValue]
    ) -> tuple[Setting, ...]:
        settings = settled(_planned(room), recommended, overrides, _check)
        _check_together(settings)
        return tuple(settings.values())


def _check(name: str, value: SettingValue, planned: Mapping[str, Setting]) -> None:
    check_setting(name, value, planned, said_elsewhere=_SAID_ELSEWHERE, least=_LEAST)
    _check_choice(name, value)


def _check_together(settings: Mapping[str, Setting]) -> None:
    """What llama.cpp would end with. Raises BadSetting."""
    value = {name: setting.value for name, setting in settings.items()}
    sequences, batch = value["max_sequences"], value["max_batched_tokens"]
    assert isinstance(sequences, int) and isinstance(batch, int)
    if sequences > _MAX_SEQUENCES:
        raise BadSetting(
            f"llama.cpp serves at most {_MAX_SEQUENCES} requests at once, not {sequences}", "lower limits.max_in_flight"
        )
    if batch < sequences:
        raise BadSetting(
            f"max_batched_tokens is {batch} for {sequences} requests at once",
            "each of them needs a token of every step",
        )
    if value["flash_attention"] == "off" and value["cache_type_v"] not in _UNQUANTISED:
        raise BadSetting(
            f"cache_type_v is {value['cache_type_v']!r} and flash_attention is 'off'",
            "a quantised V cache needs flash attention: leave it on",
        )


def _planned(room: Room) -> tuple[Setting, ...]:
    return (
        Setting(
            name="threads",
            value=max(1, room.cores - 1),
            reason="one core less than there are: its threads wait for each other many times a token, so that with the"
            " gateway on the same cores one thread for each of them is slower than one thread less",
        ),
        Setting(
            name=_WAITING,
            value="passive",
            reason="threads that wait sleep: spinning, its own default, 2 of them on 2 cores that others wanted fell"
            " to 1 token per second; asleep they gave 35 to 53",
        ),
        Setting(
            name="max_batched_tokens",
            value=max(64, room.max_sequences),
            reason="bounds a prefill step at about 0.4 s of a core for 135 million weights: a client that leaves frees"
            " the engine within a second; costs next to nothing (2,048 tokens took 11.4 s, 11.1 s in steps of 512)",
        ),
        Setting(name="max_sequences", value=room.max_sequences, reason=room.because["max_sequences"]),
        Setting(
            name="max_queued",
            value=room.max_sequences,
            reason="the gateway queues; here only a request waits whose predecessor is still giving up its seat",
        ),
        Setting(name="cache_type_k", value="f16", reason="llama.cpp's own default, pinned"),
        Setting(name="cache_type_v", value="f16", reason="llama.cpp's own default, pinned"),
        Setting(
            name="flash_attention",
            value="on",
            reason="what llama.cpp chooses itself on CPUs, pinned; a quantised V cache needs it",
        ),
        Setting(name="prefix_cache", value=True, reason="a repeated beginning of a prompt is not computed again"),
        Setting(
            name="speculative_tokens",
            value=0,
            reason="off: guessing ahead pays only where answers repeat their prompts",
        ),
        Setting(name="draft_model", value="", reason="none: what is guessed is looked up in the prompt and the answer"),
        Setting(name="default_temperature", value=1.0, reason="where a request names none: OpenAI's default"),
        Setting(name="default_top_p", value=1.0, reason="where a request names none: OpenAI's default"),
    )


def _check_choice(name: str, value: SettingValue) -> None:
    if name in _ONE_OF and value not in _ONE_OF[name]:
        raise BadSetting(f"{name} is {value!r}", f"use one of {', '.join(_ONE_OF[name])}")
