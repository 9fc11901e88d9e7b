"""The engine process of the llama.cpp server: xllamacpp, which is llama-server with Python's handle on it.

Why a process of its own: loading holds Python's interpreter lock from beginning to end, so an event loop beside it
could neither answer /health nor notice a signal; and what crashes in native code takes only this process along.

stdout carries lines for the HTTP process: `progress {JSON}`, `ready {JSON}`, `error: CAUSE`. stderr is llama.cpp's log.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from llamacpp_config import SOCKET, ServerConfig
from parent_death import die_with_parent

# How many tokens that were just written are looked for in what came before.
LOOKUP_NGRAM_TOKENS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine process; started by llamacpp_server.py.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the HTTP process")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    try:
        config = ServerConfig.load(arguments.config)
        report("import", 0, "importing llama.cpp")
        xllamacpp: Any = importlib.import_module("xllamacpp")
        report("load", 1, f"loading {config.model_path}")
        with suppress(FileNotFoundError):
            os.unlink(SOCKET)
        # It listens, loads, and computes a first token; only then it returns. The name keeps it alive.
        _server = xllamacpp.Server(parameters(xllamacpp, config))
        report("warm", 2, "loaded")
        tell("ready", json.dumps(effective(xllamacpp, config)))
    except Exception as error:  # the outermost border of this process: name the cause, then end
        tell("error:", " ".join(f"{type(error).__name__}: {error}".split())[:2000])
        sys.exit(1)
    # The other end of standard input closes when the HTTP process is gone. Its threads need no farewell.
    sys.stdin.buffer.read()
    os._exit(0)


def report(stage: str, done: int, text: str) -> None:
    tell("progress", json.dumps({"stage": stage, "done": done, "total": 2, "text": text}))


def tell(kind: str, value: str) -> None:
    print(kind, value, flush=True)


def parameters(xllamacpp: Any, config: ServerConfig) -> Any:
    """Everything that llama-server shall do otherwise than by its own defaults."""
    params = xllamacpp.CommonParams()
    params.model.path = config.model_path
    params.model_alias = {config.served_name}
    params.hostnames = [SOCKET]
    params.n_ctx = config.context_tokens * config.max_sequences  # a pool; each slot gets its even share
    params.n_parallel = config.max_sequences
    params.n_batch = params.n_ubatch = config.max_batched_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads
    params.cache_type_k = _type(xllamacpp, config.cache_type_k)
    params.cache_type_v = _type(xllamacpp, config.cache_type_v)
    attention = "ENABLED" if config.flash_attention == "on" else "DISABLED"
    params.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{attention}"]
    params.cache_prompt = config.prefix_cache
    _speculation(xllamacpp, params.speculative, config)
    _sampling(xllamacpp, params.sampling, config)
    # Memory that nobody planned: up to 8 GiB of prompts of slots that others took over.
    params.cache_ram_mib = 0
    # It would load the model twice to find out what we have planned.
    params.fit_params = False
    params.endpoint_metrics, params.endpoint_slots, params.ui = True, False, False
    # As many as can ask at once, and those that look how it is.
    params.n_threads_http = config.max_sequences + config.max_queued + 2
    # Nothing is fetched, whatever a file's metadata says.
    params.offline = True
    # Errors alone: warnings bring two lines with each prompt that it has cached, its default eight with each request.
    params.verbosity = 1
    return params


def _speculation(xllamacpp: Any, speculative: Any, config: ServerConfig) -> None:
    kinds = xllamacpp.common_speculative_type
    if config.draft_model:
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft = speculative.draft
        draft.mparams.path, draft.n_max = config.draft_model, config.speculative_tokens
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = config.threads
    elif config.speculative_tokens:
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        lookup = speculative.ngram_simple
        lookup.size_n, lookup.size_m = LOOKUP_NGRAM_TOKENS, config.speculative_tokens


def _sampling(xllamacpp: Any, sampling: Any, config: ServerConfig) -> None:
    """What holds where a request names nothing; a file's own recommendations (general.sampling.*) would win else."""
    sampling.temp, sampling.top_p = config.default_temperature, config.default_top_p
    sampling.top_k, sampling.min_p = 0, 0.0
    # OpenAI's penalties count the whole text, its own default the last 64 tokens.
    sampling.penalty_last_n = config.context_tokens
    sampling.user_sampling_config = sum(int(flag) for flag in xllamacpp.common_params_sampling_config)


def _type(xllamacpp: Any, name: str) -> Any:
    return xllamacpp.ggml_type[f"GGML_TYPE_{name.upper()}"]


def effective(xllamacpp: Any, config: ServerConfig) -> dict[str, Any]:
    """What can change an answer or its speed."""
    return {
        "engine": "llama.cpp",
        "versions": {"xllamacpp": xllamacpp.__version__},
        "python": sys.version.split()[0],
        "built_for": xllamacpp.get_system_info().strip(),
        "build": xllamacpp.BUILD_INFO,
        "lookup_ngram_tokens": LOOKUP_NGRAM_TOKENS,
        **asdict(config),
    }


if __name__ == "__main__":
    main()
