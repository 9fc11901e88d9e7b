"""Why the llama.cpp server ended: its words, each provoked on the real engine (xllamacpp 2026.10.11549), and what to
try. Our program says only that it did; the cause stands in llama.cpp's own log before it."""

from __future__ import annotations

import re

from modelyard.engines.contract import ExitReport, Failure
from modelyard.engines.failures import DAMAGED_FIX, MEMORY_FIX, OF_OUR_PROGRAMS, explain_by, known, last_error

# The first that matches decides.
_KNOWN = (
    known(
        r"(?:unknown|unsupported) model architecture: '(.*?)'",
        "model",
        r"this version of llama.cpp does not know the architecture '\1'",
        "use another model, or an engine that knows it",
    ),
    known(
        r"tensor '(.*?)' data is not within the file bounds",
        "model",
        r"the model's file is cut short: tensor \1 lies beyond its end",
        DAMAGED_FIX,
    ),
    known(
        r"check_tensor_dims: (.*)", "model", r"the model does not have the tensors of its architecture: \1", DAMAGED_FIX
    ),
    known(r"key not found in model: (\S+)", "model", r"the model's header lacks \1", DAMAGED_FIX),
    known(
        r"has invalid ggml type (\d+)",
        "model",
        r"the file has tensors of a type (\1) that this version of llama.cpp does not know",
        "use another quantisation of the model, or an engine that knows it",
    ),
    known(
        r"error loading model vocabulary: (.*)",
        "model",
        r"the model's tokenizer is not known to this version of llama.cpp: \1",
        "use a model that was converted by a version as old as this engine, or another engine",
    ),
    known(
        r"invalid magic characters|failed to read magic|this GGUF file is version|failed to read header",
        "model",
        "the file is not GGUF, or its header is damaged",
        DAMAGED_FIX,
    ),
    known(
        r"quantized V cache requires flash_attn",
        "bad_config",
        "cache_type_v is quantised and flash_attention is off",
        "leave flash_attention on, or use f16",
    ),
    known(
        r"n_seq_max must be <= (\d+)",
        "bad_config",
        r"llama.cpp serves at most \1 requests at once",
        "lower limits.max_in_flight",
    ),
    known(
        r"failed to allocate buffer for kv cache",
        "out_of_memory",
        "there is not enough memory for the KV cache",
        MEMORY_FIX,
        permanent=False,
    ),
    known(
        r"insufficient memory \(attempted to allocate ([\d.]+) MB\)|failed to allocate \S+ buffer of size",
        "out_of_memory",
        "an allocation was refused: memory or address space is used up",
        MEMORY_FIX,
        permanent=False,
    ),
    known(
        r"GGML_ASSERT\((.*)\) failed",
        "crashed",
        r"llama.cpp found itself in a state that it does not expect: \1",
        "report it with the engine's log; other settings or another model may avoid it",
        permanent=False,
    ),
    *OF_OUR_PROGRAMS,
)
_LEVELLED = re.compile(r"^\d+(?:\.\d+){3} E ")


def explain(exit: ExitReport) -> Failure:
    """By llama.cpp's own error lines and our program's; in the way it ended otherwise."""
    error = last_error(exit.tail)
    told = [_LEVELLED.sub("", line) for line in exit.tail if _LEVELLED.match(line) or "GGML_ASSERT" in line]
    return explain_by(_KNOWN, exit, (*told, error), error)
