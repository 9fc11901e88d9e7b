"""`vllm serve` read back: its flags, from `vllm/engine/arg_utils.py` and `vllm/entrypoints/launchers/cli_args.py` of
version 0.32.0, and those of versions before that people still have in their scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from modelyard.engines.importing import (
    Dialect,
    Flag,
    ImportedCommand,
    as_path,
    finished,
    note_words,
    nowhere,
    number,
    on_address,
    positive,
    read_words,
    whole,
)

VERSION = "0.32"
_SCALES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def _human(text: str) -> int | None:
    """vLLM's own short numbers: 32k is 32,000 and 32K is 32,768; -1 and auto leave it to the engine."""
    if text in ("-1", "auto"):
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text)
    if found is None:
        raise ValueError(text)
    return int(float(found[1]) * _SCALES.get(found[2], 1))


def _gibibytes(text: str) -> str:
    return f"{float(text):g}GiB"


def _byte_count(text: str) -> str:
    return str(_human(text))


def _unless_auto(text: str) -> str | None:
    return None if text == "auto" else text


def _passed(names: str, *, alone: bool = False) -> dict[str, Flag]:
    """vLLM's own flags, which its adapter passes on as they are; `alone`: switches."""
    return {name: Flag(key=f"settings.{name}", values="0" if alone else "1") for name in names.split()}


_OURS = "Modelyard's gateway does that"
_PLANNED = "planned from the model and the machine"
_FILE_ONLY = "not a setting that a deployment has"
_CODE = "code that comes with a model is never run"
_SEVERAL_HOSTS = "several machines: not in this version"
_MEDIA = "images, audio and video: not in this version"
_ADAPTERS = "LoRA adapters: not in this version"
_TOOLS = "tool calls: not in this version"
_LOGS = "Modelyard keeps the engine's log: modelyard logs"

FLAGS: dict[str, Flag] = {
    # What a deployment says.
    "--model": Flag(only_raw=True),
    "--revision": Flag(only_raw=True),
    "--served-model-name": Flag(only_raw=True, values="+"),
    "--data-parallel-size": Flag(key="replicas", read=positive),
    "--max-model-len": Flag(key="limits.context_tokens", read=_human),
    "--max-num-seqs": Flag(key="limits.max_in_flight", read=positive),
    "--max-num-queued-reqs": Flag(key="limits.max_queued", read=whole),
    "--kv-cache-memory-bytes": Flag(key="limits.kv_cache", read=_byte_count),
    "--shutdown-timeout": Flag(key="timeouts.drain_s", read=number),
    "--port": Flag(key="gateway.port", read=whole),
    "--host": Flag(only_raw=True),
    "--ssl-certfile": Flag(only_raw=True),
    "--ssl-keyfile": Flag(only_raw=True),
    # Engine settings of ours.
    "--tensor-parallel-size": Flag(key="settings.tensor_parallel", read=whole),
    "--dtype": Flag(key="settings.dtype", read=_unless_auto),
    "--block-size": Flag(key="settings.block_tokens", read=whole),
    "--max-num-batched-tokens": Flag(key="settings.max_batched_tokens", read=_human),
    "--enable-prefix-caching": Flag(key="settings.prefix_cache", values="0"),
    "--enforce-eager": Flag(key="settings.eager", values="0"),
    "--seed": Flag(key="settings.seed", read=whole),
    # Engine settings that are vLLM's flags.
    "--gpu-memory-utilization": Flag(key="settings.--gpu-memory-utilization", read=number),
    **_passed("--quantization --kv-cache-dtype"),
    **_passed("--enable-chunked-prefill", alone=True),
    # Secrets.
    "--api-key": Flag(values="+", secret=True, reason="keys are Modelyard's own: modelyard keys create NAME"),
    "--hf-token": Flag(secret=True, values="?", reason="set HF_TOKEN in the environment of modelyard"),
    # Nowhere to go.
    "--uds": Flag(reason="engines listen on unix sockets of Modelyard's own"),
    "--trust-remote-code": Flag(values="0", reason=_CODE),
    "--config": Flag(reason="a file of further flags: add them to the command line and import again"),
    "--tokenizer": Flag(reason="the model's own tokenizer is used"),
    "--chat-template": Flag(reason="the model's own template is used"),
    "--disable-log-requests": Flag(values="0", reason="no prompt is ever logged"),
    "--enable-log-requests": Flag(values="0", reason="no prompt is ever logged"),
    **_passed("--speculative-config --compilation-config --optimization-level"),
    "--pipeline-parallel-size": Flag(reason="layers over several devices: not in this version"),
    **{f"-O{level}": Flag(key="settings.--optimization-level", values="0", alone=level) for level in range(4)},
    "--swap-space": Flag(reason="gone from vLLM since its first engine"),
    "--device": Flag(reason="gone from vLLM: the build decides"),
    **nowhere(
        _OURS,
        "--allowed-origins --allowed-methods --allowed-headers --root-path --middleware --ssl-ca-certs"
        " --ssl-cert-reqs --ssl-ciphers --h11-max-incomplete-event-size --h11-max-header-count"
        " --sse-keep-alive-interval --response-role --max-log-len --fingerprint-mode --fingerprint-value"
        " --api-server-count --grpc-port",
    ),
    **nowhere(
        _OURS,
        "--allow-credentials --enable-ssl-refresh --disable-fastapi-docs --enable-offline-docs"
        " --enable-request-id-headers --enable-server-load-tracking --enable-force-include-usage"
        " --enable-prompt-tokens-details --return-tokens-as-token-ids --disable-frontend-multiprocessing"
        " --headless",
        alone=True,
    ),
    **nowhere(
        _LOGS,
        "--uvicorn-log-level --disable-access-log-for-endpoints --log-config-file --log-level"
        " --logging-config --otlp-traces-endpoint --collect-detailed-traces --show-hidden-metrics-for-version",
    ),
    **nowhere(
        _LOGS,
        "--disable-uvicorn-access-log --disable-log-stats --enable-log-outputs --aggregate-engine-logging",
        alone=True,
    ),
    **nowhere(
        _SEVERAL_HOSTS,
        "--nnodes --node-rank --master-addr --master-port --distributed-executor-backend --data-parallel-rank"
        " --data-parallel-start-rank --data-parallel-size-local --data-parallel-address"
        " --data-parallel-rpc-port --data-parallel-backend --kv-transfer-config --kv-events-config"
        " --ec-transfer-config",
    ),
    **nowhere(
        _SEVERAL_HOSTS,
        "--data-parallel-hybrid-lb --data-parallel-external-lb --data-parallel-multi-port-external-lb",
        alone=True,
    ),
    **nowhere(
        _MEDIA,
        "--limit-mm-per-prompt --mm-processor-kwargs --media-io-kwargs --mm-processor-cache-gb"
        " --mm-processor-cache-type --mm-encoder-tp-mode --mm-encoder-attn-backend --allowed-local-media-path"
        " --allowed-media-domains --video-pruning-rate",
    ),
    **nowhere(
        _MEDIA,
        "--language-model-only --enable-mm-embeds --skip-mm-profiling --interleave-mm-strings",
        alone=True,
    ),
    "--enable-lora": Flag(values="0", reason=_ADAPTERS),
    "--fully-sharded-loras": Flag(values="0", reason=_ADAPTERS),
    "--lora-modules": Flag(values="+", reason=_ADAPTERS),
    **nowhere(_ADAPTERS, "--max-loras --max-lora-rank --lora-dtype --max-cpu-loras"),
    "--enable-auto-tool-choice": Flag(values="0", reason=_TOOLS),
    **nowhere(_TOOLS, "--tool-call-parser --tool-parser-plugin --tool-server"),
    "--enable-reasoning": Flag(values="0", reason="thoughts in a field of their own: not in this version"),
    **nowhere(
        "thoughts in a field of their own: not in this version",
        "--reasoning-parser --reasoning-parser-plugin --reasoning-config --default-chat-template-kwargs",
    ),
    **nowhere(
        _FILE_ONLY,
        "--runner --convert --task --tokenizer-mode --tokenizer-revision --code-revision --hf-config-path"
        " --hf-overrides --config-format --generation-config --override-generation-config --pooler-config"
        " --max-logprobs --logprobs-mode --model-impl --logits-processors --load-format --download-dir"
        " --ignore-patterns --model-loader-extra-config --safetensors-load-strategy --rope-scaling"
        " --rope-theta --chat-template-content-format --structured-outputs-config --guided-decoding-backend"
        " --scheduler-cls --worker-cls --worker-extension-cls --additional-config --profiler-config"
        " --io-processor-plugin",
    ),
    **nowhere(
        _FILE_ONLY,
        "--skip-tokenizer-init --enable-prompt-embeds --enable-sleep-mode --disable-sliding-window"
        " --trust-request-chat-template --enable-tokenizer-info-endpoint --exclude-tools-when-tool-choice-none"
        " --allow-deprecated-quantization --use-tqdm-on-load --use-v2-block-manager --enable-elastic-ep",
        alone=True,
    ),
    **_passed(
        "--attention-backend --moe-backend --linear-backend --mamba-backend --cudagraph-capture-sizes"
        " --max-cudagraph-capture-size --cuda-graph-sizes --attention-config --kernel-config"
        " --performance-mode --spec-method --spec-model --spec-tokens --speculative-model"
        " --num-speculative-tokens --all2all-backend --decode-context-parallel-size"
        " --prefill-context-parallel-size --eplb-config --stream-interval --scheduling-policy"
        " --long-prefill-token-threshold --max-num-partial-prefills --mamba-cache-dtype"
        " --mamba-ssm-cache-dtype --kv-offloading-size --kv-offloading-backend --offload-backend"
        " --cpu-offload-gb --prefix-caching-hash-algo --num-gpu-blocks-override --num-scheduler-steps"
        " --max-seq-len-to-capture --max-parallel-loading-workers --max-num-active-seqs"
        " --max-num-scheduled-tokens --max-num-queued-tokens",
    ),
    **_passed(
        "--enable-expert-parallel --enable-eplb --enable-dbo --disable-custom-all-reduce --async-scheduling"
        " --disable-hybrid-kv-cache-manager --disable-chunked-mm-input --disable-cascade-attn"
        " --calculate-kv-scales --enable-flashinfer-autotune --numa-bind --kv-sharing-fast-prefill"
        " --use-replayssm",
        alone=True,
    ),
    "--numa-bind-cpus": Flag(reason=_PLANNED),
    "--numa-bind-nodes": Flag(reason=_PLANNED),
    "--device-ids": Flag(reason=_PLANNED),
}
ALIASES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dpl": "--data-parallel-size-local",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend",
    "-dpr": "--data-parallel-start-rank",
    "-dpn": "--data-parallel-rank",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-q": "--quantization",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
    "-asc": "--api-server-count",
    "-O": "--optimization-level",
    "--device-memory-utilization": "--gpu-memory-utilization",
}
# `--no-x` of what is on by default.
_SWITCHES = ("--enable-prefix-caching", "--enable-chunked-prefill", "--enforce-eager")
ENVIRON = {
    "VLLM_API_KEY": "--api-key",
    "HF_TOKEN": "--hf-token",
    "HUGGING_FACE_HUB_TOKEN": "--hf-token",
    "VLLM_CPU_KVCACHE_SPACE": "env:kv-cache-gib",
    "VLLM_ENGINE_READY_TIMEOUT_S": "env:ready-timeout",
    "VLLM_USE_V1": "env:engine-version",
    "VLLM_LOGGING_LEVEL": "--log-level",
    "VLLM_ATTENTION_BACKEND": "--attention-backend",
}
_OF_VARIABLES = {
    "env:kv-cache-gib": Flag(key="limits.kv_cache", read=_gibibytes),
    "env:ready-timeout": Flag(key="timeouts.startup_s", read=number),
    "env:engine-version": Flag(reason="there is one engine in vLLM now"),
}


DIALECT = Dialect(
    engine="vllm",
    version=VERSION,
    flags={
        **FLAGS,
        **_OF_VARIABLES,
        **{f"--no-{name.removeprefix('--')}": Flag(key=FLAGS[name].key, values="0", alone=False) for name in _SWITCHES},
    },
    aliases=ALIASES,
    environ=ENVIRON,
    underscores=True,
    unknown="not a flag that we know; if vLLM does, write it under settings, as its adapter passes flags on",
)


def program(words: Sequence[str]) -> Sequence[str] | None:
    """What follows `vllm serve` or `python -m vllm...api_server`; None where it is another program."""
    if not words:
        return None
    name = words[0].rpartition("/")[2]
    if name == "vllm" and list(words[1:2]) == ["serve"]:
        return words[2:]
    if re.fullmatch(r"python[0-9.]*", name) and list(words[1:2]) == ["-m"] and len(words) > 2:
        module = words[2]
        if module.startswith("vllm.entrypoints.") and module.endswith(("api_server", "serve")):
            return words[3:]
        if module == "vllm" and list(words[3:4]) == ["serve"]:
            return words[4:]
    return None


def is_image(image: str) -> bool:
    return "vllm" in image.partition("@")[0].rpartition("/")[2].partition(":")[0] or "/vllm-" in image


def read(words: Sequence[str], environ: Mapping[str, str]) -> ImportedCommand:
    """Raises UsageError where no model is named."""
    found = read_words(DIALECT, words, environ)
    on_address(found, "--host", "--ssl-certfile", "--ssl-keyfile")
    model, *others = [*filter(None, [found.raw.get("--model")]), *found.bare] or [""]
    note_words(found, others)
    return finished(
        found, reference(model, found.raw.get("--revision", "")), found.raw.get("--served-model-name") or model
    )


def reference(model: str, revision: str) -> str:
    """`org/name` is a hub's to vLLM unless there is such a folder; a path is written so that it can be nothing else."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        return f"hf://{model}" + (f"@{revision}" if revision else "")
    return as_path(model)
