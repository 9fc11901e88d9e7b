"""vLLM on NVIDIA GPUs, as far as it can be told without one: what is planned, and the command line that comes of it."""

from __future__ import annotations

import json
import subprocess
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.engines.contract import Addresses, Engine, Installed, LaunchSpec
from modelyard.engines.fake import FakeAdapter
from modelyard.engines.hosting import Devices, devices_here, requirements_here
from modelyard.engines.vllm import PROGRAM, Vllm
from modelyard.errors import CannotPlan, UsageError
from modelyard.hardware.accelerator import Accelerator
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.accelerators import held
from modelyard.planning.plan import ACCELERATOR_MEMORY, MEMORY, claimed, plan
from modelyard.records.plan import Artifact, Plan
from modelyard.spec.deployment import Deployment, Limits
from modelyard.spec.sizes import ByteSize
from modelyard.state import StateDirectory

ENGINE = Vllm()
PYTHON = "3.11.7"
INSTALLED = Installed(
    engine="vllm", version="0.32.0", python="/env/bin/python", root="/env", lock_sha256="0", build="cuda"
)
FOLDER = Artifact(name="m-bf16", format="huggingface", path="/s/m-bf16", sha256="0", size_bytes=1, lineage="")
LLAMA_8B = Card(
    format="huggingface",
    architecture="llama",
    name="llama-8b",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    value_dim=128,
    vocabulary=128_256,
    context_tokens=8192,
    parameters=8_030_261_248,
    weight_bytes={"BF16": 16_060_522_496},
    kv_values_per_token=32 * 8 * 256,
    quantisation="BF16",
)
PREDICTED = "GPU memory of one replica, KV cache full (by formula, not measured)"


def gpu(index: int = 0, name: str = "H100", **changes: object) -> Accelerator:
    one = Accelerator(
        vendor="nvidia", index=index, name=name, memory_bytes=80 << 30, architecture="9.0", driver="580", runtime="13.0"
    )
    return msgspec.structs.replace(one, **changes)


def machine(*accelerators: Accelerator) -> Machine:
    return Machine(
        cores=16,
        memory_bytes=4 << 30,
        available_bytes=4 << 30,
        cpu_model="x",
        isa=("avx2",),
        os="linux",
        arch="x86_64",
        accelerators=accelerators,
    )


def planned(
    here: Machine,
    card: Card = LLAMA_8B,
    *,
    asked: str = "",
    taken: frozenset[tuple[str, int]] = frozenset(),
    engines: tuple[Engine, ...] = (ENGINE,),
    **wanted: object,
) -> Plan:
    deployment = msgspec.structs.replace(Deployment(name="d", model="m", engine="vllm"), **wanted)
    devices_of = partial(devices_here, machine=here, python=PYTHON, asked=asked, held=taken)
    return plan(deployment, FOLDER, card, here, engines, devices_of=devices_of)


def launched(made: Plan, number: int = 0) -> LaunchSpec:
    return ENGINE.launch(made.replicas[number], INSTALLED, Addresses(listen="unix:/run/a.sock", folder="/launch"))


def test_the_plan_and_the_environment_take_the_same_build() -> None:
    for here in (machine(gpu()), machine(gpu(architecture="7.5")), machine(gpu(runtime="12.8")), machine()):
        build = requirements_here(ENGINE, here, PYTHON).build
        assert devices_here(ENGINE, here, PYTHON).build == build
        assert build == ("cuda" if here == machine(gpu()) else "cpu")


def test_a_gpus_memory_is_the_budget_and_not_the_machines() -> None:
    """16 GB of weights on a machine with 4 GiB of memory."""
    made = planned(machine(gpu()))
    (replica,) = made.replicas
    assert (replica.build, replica.accelerators, replica.ranks) == ("cuda", (0,), 1)
    memory = next(one for one in made.predictions if one.what == ACCELERATOR_MEMORY)
    assert ACCELERATOR_MEMORY == PREDICTED
    assert 16_060_522_496 < memory.low < memory.value < memory.high <= 0.92 * (80 << 30)
    assert not any(one.what == MEMORY for one in made.predictions)
    assert claimed([made]) == 0


def test_the_whole_room_is_for_whole_contexts() -> None:
    """What weights, the runtime at its largest, activations and logits leave, in contexts of 1 GiB."""
    (replica,) = planned(machine(gpu())).replicas
    least = 16_060_522_496 + 7 * 2**29 + 2 * 2048 * 4096 * 11 + 8 * 256 * 128_256
    assert replica.max_in_flight == (int(0.92 * (80 << 30)) - least) // (8192 * 131_072) == 54


def test_what_does_not_fit_is_told_with_the_gpu() -> None:
    with pytest.raises(CannotPlan, match=r"together more than 15 GiB \(92% of 1 x T with 16 GiB\)"):
        planned(machine(gpu(name="T", memory_bytes=16 << 30)))


def test_a_smaller_share_that_was_asked_for_is_planned_with() -> None:
    made = planned(machine(gpu()), settings={"--gpu-memory-utilization": 0.5})
    assert next(one.high for one in made.predictions if one.what == ACCELERATOR_MEMORY) <= 40 << 30
    argv = launched(made).argv
    assert argv.count("--gpu-memory-utilization") == 1
    assert argv[argv.index("--gpu-memory-utilization") + 1] == "0.5"
    for wrong in (0.0, 1.5, "half", True):
        with pytest.raises(CannotPlan, match="--gpu-memory-utilization is"):
            planned(machine(gpu()), settings={"--gpu-memory-utilization": wrong})


def test_tensor_parallel_takes_as_many_gpus_of_one_kind() -> None:
    there = machine(gpu(0, "A"), gpu(1, "B"), gpu(2, "B"), gpu(3, "B"))
    (replica,) = planned(there, settings={"tensor_parallel": 2}).replicas
    assert (replica.accelerators, replica.ranks, replica.setting("tensor_parallel")) == ((1, 2), 2, 2)
    with pytest.raises(CannotPlan, match=r"1 x 4 whole GPUs of one kind are needed, there are 1 x A, 3 x B") as caught:
        planned(there, settings={"tensor_parallel": 4})
    assert "settings.tensor_parallel" in caught.value.hint


def test_no_two_replicas_share_a_gpu_and_none_takes_another_deployments() -> None:
    there = machine(gpu(0), gpu(1), gpu(2))
    first = planned(there, replicas=2)
    assert [one.accelerators for one in first.replicas] == [(0,), (1,)]
    assert held([first]) == {("cuda", 0), ("cuda", 1)}
    assert planned(there, taken=held([first])).replicas[0].accelerators == (2,)
    with pytest.raises(CannotPlan, match="all 3 accelerators for cuda are taken by other deployments"):
        planned(there, taken=frozenset(("cuda", index) for index in range(3)))


def test_a_slice_is_left_out_and_said_so() -> None:
    with pytest.raises(
        CannotPlan, match=r"there are none \(1 left out: slices, or without memory of their own\)"
    ) as no:
        planned(machine(gpu(partition="0: MIG 1g.10gb")))
    assert "MODELYARD_BUILD=cpu" in no.value.hint


def test_a_build_that_was_asked_for_decides() -> None:
    small = msgspec.structs.replace(LLAMA_8B, weight_bytes={"BF16": 200_000_000}, context_tokens=1024)
    made = planned(machine(gpu()), small, asked="cpu")
    assert (made.replicas[0].build, made.replicas[0].accelerators) == ("cpu", ())
    assert made == plan(Deployment(name="d", model="m", engine="vllm"), FOLDER, small, machine(gpu()), (ENGINE,))
    with pytest.raises(CannotPlan, match="build cuda: no nvidia accelerator is here"):
        planned(machine(), asked="cuda")
    with pytest.raises(UsageError, match="no build called 'gpu'"):
        devices_here(ENGINE, machine(), PYTHON, asked="gpu")
    assert devices_here(FakeAdapter(), machine(gpu()), PYTHON) == Devices()
    assert devices_here(FakeAdapter(), machine(gpu()), PYTHON, asked="cuda").missing == "has no build for cuda"


@pytest.mark.parametrize("quantisation", ["awq", "gptq", "compressed-tensors pack-quantized", "BF16"])
def test_weights_that_need_avx512_on_a_processor_run_on_a_gpu(quantisation: str) -> None:
    assert planned(machine(gpu()), msgspec.structs.replace(LLAMA_8B, quantisation=quantisation)).replicas
    with pytest.raises(CannotPlan, match="is not planned with fp8 e4m3 on GPUs yet"):
        planned(machine(gpu()), msgspec.structs.replace(LLAMA_8B, quantisation="fp8 e4m3"))


@given(st.integers(20, 200), st.integers(256, 8192), st.sampled_from([1, 2, 4, 8, 16]))
def test_no_plan_takes_more_than_the_share(gib: int, context_tokens: int, ranks: int) -> None:
    there = machine(*(gpu(index, memory_bytes=gib << 30) for index in range(ranks)))
    limits = Limits(context_tokens=context_tokens)
    try:
        made = planned(there, settings={"tensor_parallel": ranks}, limits=limits)
    except CannotPlan as error:
        assert "together more than" in error.message
        return
    memory = next(one for one in made.predictions if one.what == ACCELERATOR_MEMORY)
    assert memory.high <= ranks * (gib << 30) * 0.92


def test_ranks_that_keep_the_same_kv_head_have_its_cache_each() -> None:
    one = ENGINE.kv_bytes_per_token(LLAMA_8B, {})
    assert one is not None
    assert [ENGINE.kv_bytes_per_token(LLAMA_8B, {"tensor_parallel": n}) for n in (1, 8, 16)] == [one, one, 2 * one]


LIMITS = Limits(context_tokens=4096, max_in_flight=16, kv_cache=ByteSize(8 << 30))
GOLDEN = (
    *("/env/bin/python", str(PROGRAM), "--model", "/s/m-bf16", "--uds", "/run/a.sock"),
    *("--served-model-name", "d", "--max-model-len", "4096"),
    *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "1", "--distributed-executor-backend", "mp"),
    *("--runner", "generate", "--load-format", "safetensors", "--dtype", "bfloat16", "--kv-cache-dtype", "auto"),
    *("--kv-cache-memory-bytes", str(((8 << 30) + 32 * 131_072) // 2), "--block-size", "32"),
    *("--max-num-seqs", "16", "--max-num-batched-tokens", "2048"),
    *("--enable-prefix-caching", "--enable-chunked-prefill", "--no-enforce-eager", "--generation-config", "vllm"),
    *("--override-generation-config", '{"temperature": 1.0, "top_p": 1.0}'),
    *("--structured-outputs-config", '{"backend": "xgrammar"}', "--seed", "0"),
    *("--enable-prompt-tokens-details", "--enable-mfu-metrics", "--disable-uvicorn-access-log"),
    *("--disable-fastapi-docs", "--fingerprint-mode", "none"),
    *("--gpu-memory-utilization", "0.92", "--attention-backend", "FLASH_ATTN"),
)


def golden() -> LaunchSpec:
    return launched(planned(machine(gpu(0), gpu(1)), settings={"tensor_parallel": 2}, limits=LIMITS))


def test_the_whole_command_line() -> None:
    assert golden().argv == GOLDEN
    flags = [word for word in GOLDEN if word.startswith("--")]
    assert len(flags) == len(set(flags))


def test_the_environment_names_the_gpus_and_nothing_of_processors() -> None:
    environ = golden().environ
    assert (environ["CUDA_DEVICE_ORDER"], environ["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "0,1")
    assert [name for name in environ if name.startswith(("VLLM_CPU", "OMP_", "VLLM_TARGET"))] == []
    for switch in ("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_OFFLINE"):
        assert environ[switch] == "1"
    assert (environ["NCCL_SOCKET_IFNAME"], environ["VLLM_WORKER_MULTIPROC_METHOD"]) == ("lo", "spawn")
    assert golden().effective["accelerators"] == 2
    assert "threads" not in golden().effective


def test_every_setting_has_a_reason() -> None:
    assert [one.name for one in planned(machine(gpu())).replicas[0].settings if not one.reason] == []


PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
names = "enforce_eager kv_cache_memory_bytes gpu_memory_utilization tensor_parallel_size attention_backend uds"
print(json.dumps({name: str(getattr(args, name)) for name in names.split()}))
"""


def test_vllms_own_parser_takes_the_command_line(kept_state: StateDirectory) -> None:
    found = sorted(kept_state.environments.glob("vllm-cpu-*/bin/python"))
    if not found:
        pytest.skip("vLLM's build for CPUs, which has the same parser, is not installed here")
    environ = {"PATH": "/usr/bin:/bin", "VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(found[0]), "-c", PARSE, *GOLDEN[2:]], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["enforce_eager"], said["gpu_memory_utilization"]) == ("False", "0.92")
    assert said["kv_cache_memory_bytes"] == str(((8 << 30) + 32 * 131_072) // 2)
    assert (said["tensor_parallel_size"], said["uds"]) == ("2", "/run/a.sock")
    assert "FLASH_ATTN" in said["attention_backend"]


def amd(index: int = 0, **changes: object) -> Accelerator:
    one = gpu(index, "MI300X", vendor="amd", architecture="gfx942", driver="6.14", runtime="7.0.2")
    return msgspec.structs.replace(one, **changes)


def test_amds_gpus_get_their_build_their_variable_and_kernels_that_all_of_them_have() -> None:
    made = planned(machine(amd(), amd(1)), settings={"tensor_parallel": 2})
    (replica,) = made.replicas
    assert (replica.build, replica.accelerators) == ("rocm", (0, 1))
    spec = launched(made)
    assert spec.environ["HIP_VISIBLE_DEVICES"] == "0,1"
    assert not any(name.startswith("CUDA_") for name in spec.environ)
    assert spec.argv[spec.argv.index("--attention-backend") + 1] == "TRITON_ATTN"


def test_an_amd_gpu_without_kernels_leaves_the_processor() -> None:
    for here in (machine(amd(architecture="gfx1030")), machine(amd(runtime="6.4"))):
        assert requirements_here(ENGINE, here, PYTHON).build == "cpu"


def test_a_gpu_of_each_vendor_takes_the_build_for_nvidia_first() -> None:
    assert requirements_here(ENGINE, machine(amd(), gpu()), PYTHON).build == "cuda"
