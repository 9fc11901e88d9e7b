"""Why the OpenVINO server ended: its words, each provoked on the real engine (2026.4.1), and what to try."""

from __future__ import annotations

import re

from modelyard.engines.contract import ExitReport, Failure
from modelyard.engines.failures import DAMAGED_FIX, MEMORY_FIX, OF_OUR_PROGRAMS, explain_by, known, last_error

_TYPES = "Q4_0, Q4_1, Q8_0, Q4_K, Q6_K and F16"

# The first that matches decides.
_KNOWN = (
    known(
        r"Unsupported model architecture '(.*?)'",
        "model",
        r"OpenVINO's GGUF reader does not know the architecture '\1'",
        "use a llama, qwen2 or qwen3 model, or another engine",
    ),
    known(
        r"gguf_tensor_to_f16 failed|Unsupported quantization type|unordered_map::at",
        "model",
        "the file has tensors of a type that OpenVINO's GGUF reader does not load",
        f"use a file whose weights are {_TYPES}, or another engine",
    ),
    known(r"KV_CACHE_PRECISION '(.*)' is not one of (.*)", "bad_config", r"KV_CACHE_PRECISION is \1", r"use one of \2"),
    known(r"cannot read the KV shape of .*?: (.*)", "model", r"the model's header is damaged: \1", DAMAGED_FIX),
    known(
        r"Unsupported property (\w+)",
        "bad_config",
        r"OpenVINO's CPU plugin has no property \1",
        "correct its name in the deployment's settings",
    ),
    known(r"Wrong value.* for property key (\w+)\. (.*)", "bad_config", r"\1 has a wrong value", r"correct \1: \2"),
    known(
        r"kv_cache_bytes (\d+) holds fewer than (\d+) blocks of (\d+) bytes",
        "does_not_fit",
        r"a KV cache of \1 bytes holds fewer than \2 blocks of \3 bytes",
        "raise limits.kv_cache",
    ),
    known(
        r"require more memory than available",
        "does_not_fit",
        "the KV cache is larger than the memory that is free now",
        MEMORY_FIX,
        permanent=False,
    ),
    *OF_OUR_PROGRAMS,
)


def explain(exit: ExitReport) -> Failure:
    """The cause in the last `error:` line where there is one, in the way it ended otherwise."""
    error = last_error(exit.tail)
    return explain_by(_KNOWN, exit, (error,), _tidy(error))


def _tidy(error: str) -> str:
    """Without the places in the engine's source, which say nothing to an operator."""
    return re.sub(r"Exception from \S+:\d+:\s*|Check '.*?' failed at \S+:\d+:\s*|^RuntimeError:\s*", "", error).strip()
