"""vLLM's build for NVIDIA GPUs: environment, memory, settings. From its source and by formulas: not tried on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.engines.contract import Installed, Requirements
from modelyard.engines.locks import shipped
from modelyard.engines.sizing import BadSetting, Footprint, Room, SettingValue
from modelyard.hardware.builds import BuildNeeds
from modelyard.models.card import Card
from modelyard.records.plan import ReplicaPlan, Setting

REQUIREMENTS = Requirements(
    packages=("vllm==0.32.0", "gguf==0.19.0"),
    version="0.32.0",
    download_bytes=3_950_000_000,
    # An estimate: unpacked, wheels of CUDA take two to two and a half times their download.
    installed_bytes=9_500_000_000,
    import_check="vllm",
    build="cuda",
    lock=shipped("vllm-cuda"),
    # fastapi's command line brings an error reporter that phones home.
    without=("fastapi-cli", "fastapi-cloud-cli", "sentry-sdk"),
)
NEEDS = BuildNeeds(
    build="cuda",
    machines={"x86_64": frozenset(), "aarch64": frozenset()},
    # vLLM's kernels begin with 7.5; it refuses bfloat16, in which we plan, below 8.0 (vllm.platforms.cuda of 0.32).
    least_architecture="8.0",
    # Its torch is built for CUDA 13.0: `cuda-toolkit` in the lock.
    least_runtime="13.0",
)

# The part of a GPU's whole memory that vLLM takes for itself: `gpu_memory_utilization` of 0.32. It refuses to start
# where less than that is free.
SHARE, UTILISATION = 0.92, "--gpu-memory-utilization"
DEFAULT_SEQUENCES, WHY_SEQUENCES = 256, "vLLM's own default; more wait in the gateway"
_BATCHED_TOKENS = 2048
_GIB, _MIB = 1 << 30, 1 << 20
# Activations of one pass over t tokens of width h are 2 * t * h * c bytes in each rank, 70 MiB at least. c by ranks,
# the NCCL buffers, and the most that is left for context, workspaces and CUDA graphs are those of NVIDIA's
# AIConfigurator, found for another engine (TensorRT-LLM).
_ACTIVATION_FACTOR = {1: 11.0, 2: 6.5, 4: 5.0, 8: 5.0}
_ACTIVATION_FACTOR_OF_EXPERTS = {1: 22.0, 2: 13.0, 4: 10.0, 8: 10.0}
_EXPERTS = frozenset({"minimax_m2", "mixtral", "qwen2_moe", "qwen3_moe"})
_LEAST_ACTIVATION_BYTES = 70 * _MIB
_NCCL_BYTES = {1: 0, 2: 342_000_000, 4: 392_000_000, 8: 392_000_000}
_OTHER_LOW_BYTES, _OTHER_BYTES, _OTHER_HIGH_BYTES = _GIB // 2, 3 * _GIB // 2, 7 * _GIB // 2
# The sampler's profile run has logits of all sequences in 32 bits, and sorts a copy of them.
_LOGIT_BYTES = 8
# Imports, compilation and capture of graphs: the llm-d project counts two to seven minutes for a server with a GPU. And
# the reading of the weights, at 1 GB/s.
_LOAD_LOW_S, _LOAD_S, _LOAD_HIGH_S, _LOAD_S_PER_BYTE = 40.0, 150.0, 420.0, 1e-9
_SLOW_DISK = 5


def share(overrides: Mapping[str, SettingValue]) -> float:
    part = overrides.get(UTILISATION, SHARE)
    if isinstance(part, str | bool) or not 0 < part <= 1:
        raise BadSetting(f"{UTILISATION} is {part!r}", f"give a part of the memory, such as {SHARE}")
    return part


def footprint(card: Card, ranks: int) -> Footprint:
    """Bytes of GPU memory, over all ranks and without the KV cache: vLLM keeps for that what weights, activations of a
    profile run, CUDA graphs and what lies outside torch leave (vllm.v1.worker.gpu_worker)."""
    known = max(one for one in _NCCL_BYTES if one <= ranks)
    factor = (_ACTIVATION_FACTOR_OF_EXPERTS if card.architecture in _EXPERTS else _ACTIVATION_FACTOR)[known]
    activation = max(_LEAST_ACTIVATION_BYTES, int(2 * _BATCHED_TOKENS * (card.hidden or 0) * factor))
    logits = DEFAULT_SEQUENCES * (card.vocabulary or 0) * _LOGIT_BYTES
    each = activation + logits + _NCCL_BYTES[known]
    weights, seconds = card.total_weight_bytes, card.total_weight_bytes * _LOAD_S_PER_BYTE
    return Footprint(
        memory_bytes=weights + ranks * (each + _OTHER_BYTES),
        memory_low_bytes=weights + ranks * _OTHER_LOW_BYTES,
        memory_high_bytes=weights + ranks * (each + _OTHER_HIGH_BYTES),
        load_s=_LOAD_S + seconds,
        load_low_s=_LOAD_LOW_S,
        load_high_s=_LOAD_HIGH_S + _SLOW_DISK * seconds,
    )


def settings(room: Room, common: Mapping[str, Setting]) -> tuple[Setting, ...]:
    """Those of every build (`common`), with what is different on a GPU."""
    changed = {
        "block_tokens": Setting(
            name="block_tokens",
            value=common["block_tokens"].value,
            reason="a multiple of 16, as its attention asks for; as large as on processors",
        ),
        "tensor_parallel": Setting(name="tensor_parallel", value=room.ranks, reason="one rank on each GPU"),
        "dtype": Setting(name="dtype", value="bfloat16", reason="what the weights are; vLLM computes it from 8.0 on"),
        "max_batched_tokens": Setting(
            name="max_batched_tokens",
            value=_BATCHED_TOKENS,
            reason="vLLM's own default; activations are planned for it",
        ),
        "eager": Setting(name="eager", value=False, reason="compiled, in CUDA graphs: steps wait for no Python"),
        UTILISATION: Setting(
            name=UTILISATION,
            value=SHARE,
            reason="vLLM's own default: what must be free at the start; the KV cache has its own number",
        ),
        "--attention-backend": Setting(
            name="--attention-backend",
            value="FLASH_ATTN",
            reason="is in vLLM's wheel; FlashInfer's kernels would be compiled or fetched at the start",
        ),
    }
    kept = {name: one for name, one in common.items() if name != "threads"}
    return tuple((kept | changed).values())


def environ(replica: ReplicaPlan, install: Installed) -> dict[str, str]:
    """GPUs are numbered as the driver's tools number them. What is compiled is kept: it takes minutes."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in replica.accelerators),
        "CUDA_CACHE_PATH": f"{install.root}/cache/cuda",
        "TRITON_CACHE_DIR": f"{install.root}/cache/triton",
        "FLASHINFER_WORKSPACE_BASE": f"{install.root}/cache",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # Our program is read again by processes that are spawned, not by those that are forked.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # How long a start may take is watched by who started it.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(replica.startup_timeout_s)),
        "NCCL_SOCKET_IFNAME": "lo",
    }
