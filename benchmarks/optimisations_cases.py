"""What the optimisation benchmark compares: for each engine, two deployments that differ in one optimisation.

Deployments, not command lines: settings are those that an operator may set, and go through the planner and the
adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.optimisations_prompts import Kind

Optimisation = Literal[
    "continuous batching", "prefix cache", "KV-cache quantisation", "chunked prefill", "prompt lookup", "draft model"
]
EngineName = Literal["openvino", "llama.cpp", "vllm"]
Value = str | int | float | bool

CONTEXT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Work:
    """What both halves of a pair are asked: `requests` prompts by `clients` at once."""

    kind: Kind
    clients: int
    requests: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Draft:
    """The setting that names a draft model, with {path} in its value. `export` is a program that the engine's own
    Python runs on the draft's file first; the engine is then given the file's folder."""

    setting: str
    value: str
    export: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """The parts of a deployment that matter here. `kv_share` of the KV cache that the planner would give is asked for.
    `draft` is set behind the planner, which refuses a second model file."""

    settings: Mapping[str, Value] = field(default_factory=dict[str, Value])
    max_in_flight: int = 4
    kv_share: float = 1.0
    draft: Draft | None = None


@dataclass(frozen=True, slots=True)
class Case:
    on: Variant
    off: Variant


@dataclass(frozen=True, slots=True)
class NotOffered:
    """The engine, or our adapter of it, has no such thing; `source` is where that can be read."""

    reason: str
    source: str


WORK: dict[Optimisation, Work] = {
    "continuous batching": Work("stories", clients=8, requests=16, max_tokens=64),
    "prefix cache": Work("shared beginning", clients=1, requests=6, max_tokens=16),
    "KV-cache quantisation": Work("long", clients=4, requests=4, max_tokens=64),
    "chunked prefill": Work("mixed", clients=4, requests=8, max_tokens=64),
    "prompt lookup": Work("copy", clients=1, requests=3, max_tokens=128),
    "draft model": Work("stories", clients=1, requests=3, max_tokens=64),
}

_EIGHT, _ONE_BY_ONE = Variant(max_in_flight=8), Variant(max_in_flight=1)
# Requests that find no seat wait inside these engines; vLLM has no bound of its own.
_QUEUE = {"max_queued": 16}
_CHUNKED, _WHOLE = {"max_batched_tokens": 128}, {"max_batched_tokens": CONTEXT_TOKENS}
_CACHED, _UNCACHED = {"prefix_cache": True}, {"prefix_cache": False}

CASES: dict[EngineName, dict[Optimisation, Case | NotOffered]] = {
    "openvino": {
        "continuous batching": Case(Variant(_QUEUE, 8), Variant(_QUEUE, 1)),
        "prefix cache": Case(Variant(_CACHED), Variant(_UNCACHED)),
        "KV-cache quantisation": Case(Variant({"KV_CACHE_PRECISION": "u8"}), Variant({"KV_CACHE_PRECISION": "f32"})),
        "chunked prefill": Case(Variant(_CHUNKED), Variant(_WHOLE)),
        "prompt lookup": Case(Variant({**_UNCACHED, "speculative_tokens": 5}), Variant(_UNCACHED)),
        "draft model": Case(
            Variant({**_UNCACHED, "speculative_tokens": 3}, draft=Draft("draft_model", "{path}", "export_draft.py")),
            Variant(_UNCACHED),
        ),
    },
    "llama.cpp": {
        "continuous batching": Case(Variant(_QUEUE, 8), Variant(_QUEUE, 1)),
        "prefix cache": Case(Variant(_CACHED), Variant(_UNCACHED)),
        "KV-cache quantisation": Case(
            Variant({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
            Variant({"cache_type_k": "f16", "cache_type_v": "f16"}),
        ),
        "chunked prefill": Case(Variant(_CHUNKED), Variant(_WHOLE)),
        "prompt lookup": Case(Variant({"speculative_tokens": 5}), Variant()),
        "draft model": Case(Variant({"speculative_tokens": 3}, draft=Draft("draft_model", "{path}")), Variant()),
    },
    "vllm": {
        "continuous batching": Case(_EIGHT, _ONE_BY_ONE),
        "prefix cache": Case(Variant(_CACHED), Variant(_UNCACHED)),
        "KV-cache quantisation": Case(Variant({"--kv-cache-dtype": "fp8"}, kv_share=0.5), Variant()),
        "chunked prefill": Case(Variant(_CHUNKED), Variant({**_WHOLE, "--enable-chunked-prefill": False})),
        "prompt lookup": Case(
            Variant(
                {
                    "--speculative-config": '{"method": "ngram", "num_speculative_tokens": 5, '
                    '"prompt_lookup_max": 3, "prompt_lookup_min": 2}'
                }
            ),
            Variant(),
        ),
        "draft model": Case(
            Variant(
                draft=Draft(
                    "--speculative-config",
                    '{{"method": "draft_model", "model": "{path}", "num_speculative_tokens": 3}}',
                )
            ),
            Variant(),
        ),
    },
}
