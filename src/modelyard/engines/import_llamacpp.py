"""`llama-server` read back: its flags, from `tools/server/README.md` of llama.cpp at 00dc805, and those of before that
people still have in their scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from modelyard.engines.importing import (
    Dialect,
    Flag,
    ImportedCommand,
    NotTaken,
    Taken,
    as_path,
    finished,
    note_words,
    nowhere,
    on_address,
    positive,
    read_words,
    whole,
)

_OURS = "Modelyard's gateway does that"
_GPU = "llama.cpp on GPUs: not in this version"
_SAMPLING = "how an answer is sampled is for each request to say, or for the model's authors"
_LOGS = "Modelyard keeps the engine's log: modelyard logs"
_PLANNED = "planned from the model and the machine"
_MEDIA = "images, audio and video: not in this version"
_DRAFT = "an optimisation that this version does not set"
_ROPE = "the model's own header says it"
_LOADING = "how a file is read is the adapter's to say"
_THOUGHTS = "thoughts in a field of their own: not in this version"
_ROUTER = "several models: a deployment each, in one file"
_FILE_ONLY = "not a setting that a deployment has"


def _flash(text: str) -> str | None:
    """`-fa` alone was on, before it took a word; auto leaves it to the adapter."""
    if text == "auto":
        return None
    return "on" if text in ("on", "1", "true", "enabled") else "off"


FLAGS: dict[str, Flag] = {
    # What a deployment says.
    "--model": Flag(only_raw=True),
    "--hf-repo": Flag(only_raw=True),
    "--hf-file": Flag(only_raw=True),
    "--model-url": Flag(only_raw=True),
    "--alias": Flag(only_raw=True),
    "--ctx-size": Flag(only_raw=True),
    "--parallel": Flag(only_raw=True),
    "--port": Flag(key="gateway.port", read=whole),
    "--host": Flag(only_raw=True),
    "--ssl-cert-file": Flag(only_raw=True),
    "--ssl-key-file": Flag(only_raw=True),
    # Engine settings.
    "--threads": Flag(key="settings.threads", read=positive),
    "--batch-size": Flag(key="settings.max_batched_tokens", read=whole),
    "--cache-type-k": Flag(key="settings.cache_type_k"),
    "--cache-type-v": Flag(key="settings.cache_type_v"),
    "--flash-attn": Flag(key="settings.flash_attention", read=_flash, values="?", alone="on"),
    # Secrets.
    "--api-key": Flag(secret=True, reason="keys are Modelyard's own: modelyard keys create NAME"),
    "--api-key-file": Flag(secret=True, reason="keys are Modelyard's own: modelyard keys create NAME"),
    "--hf-token": Flag(secret=True, reason="set HF_TOKEN in the environment of modelyard"),
    # Nowhere to go.
    **nowhere(
        _OURS,
        "--path --cors-origins --cors-methods --cors-headers --api-prefix --ui-config --ui-config-file --timeout"
        " --sse-ping-interval --threads-http --tags --webui-config --webui-config-file",
    ),
    **nowhere(
        _OURS,
        "--cors-credentials --no-cors-credentials --ui --no-ui --webui --no-webui --metrics --props --slots --no-slots"
        " --reuse-port --ui-mcp-proxy --no-ui-mcp-proxy",
        alone=True,
    ),
    **nowhere(
        _GPU,
        "--n-gpu-layers --split-mode --tensor-split --main-gpu --device --override-tensor --n-cpu-moe --moe-cache-mib"
        " --n-cpu-ffn --rpc",
    ),
    **nowhere(_GPU, "--cpu-moe --kv-offload --no-kv-offload --op-offload --no-op-offload --no-host", alone=True),
    **nowhere(
        _SAMPLING,
        "--samplers --seed --sampler-seq --temp --top-k --top-p --min-p --top-nsigma --xtc-probability --xtc-threshold"
        " --typical --repeat-last-n --repeat-penalty --presence-penalty --frequency-penalty --dry-multiplier --dry-base"
        " --dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker --adaptive-target --adaptive-decay"
        " --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr --mirostat-ent --logit-bias --grammar --grammar-file"
        " --json-schema --json-schema-file --predict --reverse-prompt",
    ),
    **nowhere(_SAMPLING, "--ignore-eos --backend-sampling --special --escape --no-escape", alone=True),
    **nowhere(_LOGS, "--log-file --verbosity --log-colors"),
    **nowhere(
        _LOGS,
        "--log-disable --log-jsonl --no-log-jsonl --verbose --log-prefix --no-log-prefix --log-timestamps"
        " --no-log-timestamps --perf --no-perf",
        alone=True,
    ),
    **nowhere(
        _PLANNED,
        "--threads-batch --ubatch-size --cpu-mask --cpu-range --cpu-strict --prio --poll"
        " --cpu-mask-batch --cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch --numa --fit --fit-target"
        " --fit-ctx --cache-ram --cache-reuse --keep --kv-unified-per-slot --ctx-checkpoints --checkpoint-min-step"
        " --defrag-thold",
    ),
    **nowhere(
        _PLANNED,
        "--cont-batching --no-cont-batching --kv-unified --no-kv-unified --cache-prompt --no-cache-prompt --swa-full"
        " --context-shift --no-context-shift --warmup --no-warmup --repack --no-repack --cache-idle-slots"
        " --no-cache-idle-slots --check-tensors",
        alone=True,
    ),
    **nowhere(
        _MEDIA,
        "--mmproj --mmproj-url --mmproj-device --image-min-tokens --image-max-tokens --mtmd-batch-max-tokens"
        " --video-fps --media-path",
    ),
    **nowhere(_MEDIA, "--mmproj-auto --no-mmproj --mmproj-offload --no-mmproj-offload", alone=True),
    **nowhere(
        _DRAFT,
        "--model-draft --hf-repo-draft --draft-max --draft-min --draft-p-min --ctx-size-draft --n-gpu-layers-draft"
        " --device-draft --cache-type-k-draft --cache-type-v-draft --spec-type --spec-draft-n-max --spec-draft-n-min"
        " --lookup-cache-static --lookup-cache-dynamic --draft",
    ),
    **nowhere(
        _ROPE,
        "--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor"
        " --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast --override-kv",
    ),
    **nowhere(_LOADING, "--load-mode --lazy-mode"),
    **nowhere(_LOADING, "--mlock --no-mmap --mmap --direct-io --no-direct-io --offline", alone=True),
    **nowhere(
        _THOUGHTS,
        "--reasoning-format --reasoning --reasoning-effort --reasoning-budget --reasoning-budget-message"
        " --chat-template-kwargs",
    ),
    **nowhere(_THOUGHTS, "--reasoning-preserve --no-reasoning-preserve", alone=True),
    **nowhere(_ROUTER, "--models-dir --models-preset --models-max"),
    **nowhere(_ROUTER, "--models-autoload --no-models-autoload", alone=True),
    **nowhere("the model's own template is used", "--chat-template --chat-template-file"),
    **nowhere("templates are always rendered so", "--jinja", alone=True),
    **nowhere("the model's own template is used", "--no-jinja --skip-chat-parsing --spm-infill", alone=True),
    **nowhere("LoRA adapters: not in this version", "--lora --lora-scaled --control-vector --control-vector-scaled"),
    **nowhere("embeddings and reranking: not in this version", "--pooling --embd-normalize"),
    **nowhere("embeddings and reranking: not in this version", "--embedding --reranking", alone=True),
    **nowhere("tools that a server runs by itself are not served", "--tools --tools-runtime --mcp-servers-config"),
    **nowhere("tools that a server runs by itself are not served", "--agent --no-agent", alone=True),
    **nowhere(_FILE_ONLY, "--slot-save-path --docker-repo --sleep-idle-seconds"),
}
ALIASES = {
    "-m": "--model",
    "-mu": "--model-url",
    "-hf": "--hf-repo",
    "-hfr": "--hf-repo",
    "-hff": "--hf-file",
    "-hft": "--hf-token",
    "-dr": "--docker-repo",
    "-a": "--alias",
    "-c": "--ctx-size",
    "-np": "--parallel",
    "-t": "--threads",
    "-tb": "--threads-batch",
    "-b": "--batch-size",
    "-ub": "--ubatch-size",
    "-ctk": "--cache-type-k",
    "-ctv": "--cache-type-v",
    "-fa": "--flash-attn",
    "-ngl": "--n-gpu-layers",
    "--gpu-layers": "--n-gpu-layers",
    "-sm": "--split-mode",
    "-ts": "--tensor-split",
    "-mg": "--main-gpu",
    "-dev": "--device",
    "-ot": "--override-tensor",
    "-cmoe": "--cpu-moe",
    "-ncmoe": "--n-cpu-moe",
    "-ncffn": "--n-cpu-ffn",
    "-kvo": "--kv-offload",
    "-nkvo": "--no-kv-offload",
    "-nr": "--no-repack",
    "-C": "--cpu-mask",
    "-Cr": "--cpu-range",
    "-Cb": "--cpu-mask-batch",
    "-Crb": "--cpu-range-batch",
    "-n": "--predict",
    "--n-predict": "--predict",
    "-s": "--seed",
    "--temperature": "--temp",
    "-l": "--logit-bias",
    "-j": "--json-schema",
    "-jf": "--json-schema-file",
    "-bs": "--backend-sampling",
    "-r": "--reverse-prompt",
    "-sp": "--special",
    "-e": "--escape",
    "-v": "--verbose",
    "--log-verbose": "--verbose",
    "-lv": "--verbosity",
    "--log-verbosity": "--verbosity",
    "-fit": "--fit",
    "-fitt": "--fit-target",
    "-fitc": "--fit-ctx",
    "-cram": "--cache-ram",
    "-ctxcp": "--ctx-checkpoints",
    "--swa-checkpoints": "--ctx-checkpoints",
    "-cms": "--checkpoint-min-step",
    "-dt": "--defrag-thold",
    "-cb": "--cont-batching",
    "-nocb": "--no-cont-batching",
    "-kvu": "--kv-unified",
    "-no-kvu": "--no-kv-unified",
    "-mm": "--mmproj",
    "-mmu": "--mmproj-url",
    "--no-mmproj-auto": "--no-mmproj",
    "-md": "--model-draft",
    "-hfd": "--hf-repo-draft",
    "-cd": "--ctx-size-draft",
    "-ngld": "--n-gpu-layers-draft",
    "-ctkd": "--cache-type-k-draft",
    "-ctvd": "--cache-type-v-draft",
    "-lcs": "--lookup-cache-static",
    "-lcd": "--lookup-cache-dynamic",
    "-lm": "--load-mode",
    "-lzm": "--lazy-mode",
    "-dio": "--direct-io",
    "-rea": "--reasoning",
    "-to": "--timeout",
    "-ag": "--agent",
    "-no-ag": "--no-agent",
    "--embeddings": "--embedding",
    "--rerank": "--reranking",
}
# What the README calls the variable of a flag, where it is not the flag's name in capitals.
_VARIABLES = {
    "LLAMA_ARG_N_PARALLEL": "--parallel",
    "LLAMA_ARG_BATCH": "--batch-size",
    "LLAMA_ARG_UBATCH": "--ubatch-size",
    "LLAMA_ARG_N_PREDICT": "--predict",
    "LLAMA_ARG_TEMPERATURE": "--temp",
    "LLAMA_ARG_ENDPOINT_METRICS": "--metrics",
    "LLAMA_ARG_ENDPOINT_PROPS": "--props",
    "LLAMA_ARG_ENDPOINT_SLOTS": "--slots",
    "LLAMA_ARG_THINK": "--reasoning-format",
    "LLAMA_ARG_THINK_BUDGET": "--reasoning-budget",
    "LLAMA_ARG_EMBEDDINGS": "--embedding",
    "LLAMA_API_KEY": "--api-key",
    "HF_TOKEN": "--hf-token",
}
ENVIRON = {f"LLAMA_ARG_{name.removeprefix('--').replace('-', '_').upper()}": name for name in FLAGS} | _VARIABLES
DIALECT = Dialect(engine="llama.cpp", version="of October 2026", flags=FLAGS, aliases=ALIASES, environ=ENVIRON)


def program(words: Sequence[str]) -> Sequence[str] | None:
    """What follows `llama-server` or `llama serve`, wherever it lies; None where it is another program."""
    name = words[0].rpartition("/")[2] if words else ""
    if name in ("llama-server", "llama-server.exe"):
        return words[1:]
    return words[2:] if name == "llama" and list(words[1:2]) in (["serve"], ["server"]) else None


def is_image(image: str) -> bool:
    return bool(re.search(r"/llama\.cpp(?::(?:full|server)|$)", image.partition("@")[0]))


def read(words: Sequence[str], environ: Mapping[str, str]) -> ImportedCommand:
    """Raises UsageError where no model is named."""
    found = read_words(DIALECT, words, environ)
    on_address(found, "--host", "--ssl-cert-file", "--ssl-key-file")
    note_words(found, found.bare)
    _share_context(found.taken, found.not_taken, found.raw)
    raw = found.raw
    model = raw.get("--model", "")
    if repository := raw.get("--hf-repo"):
        model = f"hf://{repository.partition(':')[0]}"
        choice = raw.get("--hf-file") or repository.partition(":")[2]
        model += f":{choice}" if choice else ""
        named = repository.partition(":")[0]
    elif url := raw.get("--model-url"):
        model = named = url
    else:
        model, named = as_path(model), model
    return finished(found, model, raw.get("--alias", "").partition(",")[0] or named)


def _share_context(taken: dict[str, Taken], not_taken: list[NotTaken], raw: Mapping[str, str]) -> None:
    """llama.cpp's `-c` is the room of all slots together, a share for each unless it is unified; our limit is of one
    request."""
    slots, context = _count(raw.get("--parallel")), _count(raw.get("--ctx-size"))
    shares = 1 if "--kv-unified" in raw else slots or 1
    if slots:
        taken["limits.max_in_flight"] = Taken(key="limits.max_in_flight", value=slots, flag=f"-np {slots}")
    elif raw.get("--parallel"):
        not_taken.append(NotTaken(said=f"-np {raw['--parallel']}", reason=_PLANNED))
    if context:
        said = f"-c {context}" + (f" for {shares} slots" if shares > 1 else "")
        taken["limits.context_tokens"] = Taken(key="limits.context_tokens", value=context // shares, flag=said)
    elif raw.get("--ctx-size"):
        not_taken.append(
            NotTaken(said=f"-c {raw['--ctx-size']}", reason="0 is the model's own, as here without a limit")
        )


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and int(text) else None
