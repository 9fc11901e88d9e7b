"""Why the OpenVINO server ended: its words, each provoked on the real engine (2026.4.1), and what to try."""

from __future__ import annotations

import re
from typing import NamedTuple

from modelyard.engines.contract import ExitReport, Failure

_BAD_USAGE = 2
_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
_TYPES = "Q4_0, Q4_1, Q8_0, Q4_K, Q6_K and F16"
_MEMORY_FIX = "lower limits.kv_cache, limits.context_tokens or limits.max_in_flight, or free memory"
_DAMAGED_FIX = "fetch the model again; if it stays, the file itself is not what its name says"


class _Known(NamedTuple):
    """`pattern` is searched in the error line; `cause` may use its groups, and is the line itself if empty."""

    pattern: str
    template: Failure


def _known(pattern: str, kind: str, cause: str, fix: str, *, permanent: bool = True) -> _Known:
    return _Known(pattern, Failure(kind=kind, cause=cause, fix=fix, permanent=permanent))  # type: ignore[arg-type]


# The first that matches decides.
_KNOWN = (
    _known(
        r"Unsupported model architecture '(.*?)'",
        "model",
        r"OpenVINO's GGUF reader does not know the architecture '\1'",
        "use a llama, qwen2 or qwen3 model, or another engine",
    ),
    _known(
        r"gguf_tensor_to_f16 failed|Unsupported quantization type|unordered_map::at",
        "model",
        "the file has tensors of a type that OpenVINO's GGUF reader does not load",
        f"use a file whose weights are {_TYPES}, or another engine",
    ),
    _known(r"model_path (.*) does not exist", "model", r"the model is not at \1", "fetch the model again"),
    _known(
        r"KV_CACHE_PRECISION '(.*)' is not one of (.*)", "bad_config", r"KV_CACHE_PRECISION is \1", r"use one of \2"
    ),
    _known(r"cannot read the KV shape of .*?: (.*)", "model", r"the model's header is damaged: \1", _DAMAGED_FIX),
    _known(
        r"Unsupported property (\w+)",
        "bad_config",
        r"OpenVINO's CPU plugin has no property \1",
        "correct its name in the deployment's settings",
    ),
    _known(r"Wrong value.* for property key (\w+)\. (.*)", "bad_config", r"\1 has a wrong value", r"correct \1: \2"),
    _known(
        r"kv_cache_bytes (\d+) holds fewer than (\d+) blocks of (\d+) bytes",
        "does_not_fit",
        r"a KV cache of \1 bytes holds fewer than \2 blocks of \3 bytes",
        "raise limits.kv_cache",
    ),
    _known(
        r"require more memory than available",
        "does_not_fit",
        "the KV cache is larger than the memory that is free now",
        _MEMORY_FIX,
        permanent=False,
    ),
    _known(
        r"bad_alloc|Cannot allocate memory|Resource temporarily unavailable|MemoryError",
        "out_of_memory",
        "an allocation was refused: memory or address space is used up",
        _MEMORY_FIX,
        permanent=False,
    ),
    _known(
        r"No module named|ImportError|cannot open shared object",
        "bad_config",
        "",
        "remove the engine's environment (it is made again) or install the missing system library",
    ),
    _known(
        r"cannot serve on (.*)",
        "crashed",
        r"it cannot listen on \1",
        "see whether the state directory is still there and its disk has space",
        permanent=False,
    ),
    _known(
        r"was killed by SIGKILL",
        "killed",
        "something killed the process that holds the model (SIGKILL); often the kernel, for lack of memory",
        _MEMORY_FIX,
        permanent=False,
    ),
    _known(
        r"was killed by SIGILL",
        "crashed",
        "it used an instruction that this CPU does not have",
        "use another engine on this machine",
    ),
    _known(
        r"was killed by (SIGSEGV|SIGBUS|SIGABRT)",
        "crashed",
        r"the engine crashed in its own code (\1)",
        "if it happens while loading, the model's file may be cut short: fetch it again",
        permanent=False,
    ),
)


def explain(exit: ExitReport) -> Failure:
    """The cause in the last `error:` line where there is one, in the way it ended otherwise."""
    error = last_error(exit.tail)
    if exit.out_of_memory:
        cause = "the kernel ended it: out of memory"
        return Failure(kind="out_of_memory", cause=cause, fix=_MEMORY_FIX, permanent=False)
    for pattern, template in _KNOWN:
        if found := re.search(pattern, error):
            return Failure(
                kind=template.kind,
                cause=found.expand(template.cause) if template.cause else _tidy(error),
                fix=found.expand(template.fix),
                permanent=template.permanent,
            )
    return _by_ending(exit, _tidy(error))


def _by_ending(exit: ExitReport, error: str) -> Failure:
    if exit.signal in (9, 15):
        cause = f"something outside ended it ({_SIGNALS[exit.signal]})"
        return Failure(kind="killed", cause=cause, fix="find out who did; it is started again", permanent=False)
    if exit.code == _BAD_USAGE:
        cause = error or "it refused its configuration"
        return Failure(kind="bad_config", cause=cause, fix="correct the deployment's settings", permanent=True)
    ended = f"exit code {exit.code}" if exit.signal is None else _SIGNALS.get(exit.signal, f"signal {exit.signal}")
    said = error or next((line for line in reversed(exit.tail) if line.strip()), "no word in its log")
    return Failure(kind="crashed", cause=f"{ended}: {said}", fix="read the engine's log", permanent=False)


def last_error(tail: tuple[str, ...]) -> str:
    """The cause in the last `error: cause` line; empty where there is none."""
    return next((line.removeprefix("error: ") for line in reversed(tail) if line.startswith("error: ")), "")


def _tidy(error: str) -> str:
    """Without the places in the engine's source, which say nothing to an operator."""
    return re.sub(r"Exception from \S+:\d+:\s*|Check '.*?' failed at \S+:\d+:\s*|^RuntimeError:\s*", "", error).strip()
