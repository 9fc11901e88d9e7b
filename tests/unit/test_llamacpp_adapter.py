"""The adapter's words against recorded ones of the real engine (xllamacpp 2026.10.11549)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from cards import SMOLLM2

from modelyard.engines.contract import Addresses, EngineMetrics, ExitReport, Installed, LaunchSpec, Progress
from modelyard.engines.llamacpp import PROGRAM, SOCKET_NAME, LlamaCpp
from modelyard.engines.sizing import BadSetting, Room, SettingValue, Sized
from modelyard.records.plan import Artifact, ReplicaPlan
from programs import load_program

ENGINE = LlamaCpp()
ROOM = Room(
    cores=2,
    context_tokens=4096,
    max_sequences=8,
    kv_cache_bytes=1 << 29,
    hang_timeout_s=20.0,
    because={"kv_cache_bytes": "x", "max_sequences": "y"},
)
CONFIG_NAME = f"{PROGRAM.stem}.json"
INSTALLED = Installed(engine="llama.cpp", version="1", python="/env/bin/python", root="/env", lock_sha256="0")


def launched(listen: str = "unix:/run/a.sock", **overrides: SettingValue) -> LaunchSpec:
    artifact = Artifact(name="m", format="gguf", path="/s/m.gguf", sha256="0", size_bytes=1, lineage="")
    replica = ReplicaPlan(
        name="d-0",
        engine="llama.cpp",
        served_name="d",
        artifact=artifact,
        max_in_flight=8,
        context_tokens=4096,
        settings=ENGINE.settings(ROOM, overrides, {}),
    )
    return ENGINE.launch(replica, INSTALLED, Addresses(listen=listen, folder="/launch"))


def config_of(spec: LaunchSpec) -> dict[str, object]:
    return json.loads(spec.files[CONFIG_NAME])


def test_the_command_line_is_the_program_in_its_own_environment() -> None:
    assert launched().argv == ("/env/bin/python", str(PROGRAM), "--config", f"/launch/{CONFIG_NAME}")
    assert PROGRAM.is_file()


def test_the_configuration_is_whole_and_the_program_accepts_it(tmp_path: Path) -> None:
    config = config_of(launched())
    (tmp_path / "m.gguf").touch()
    config["model_path"] = str(tmp_path / "m.gguf")
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    read = load_program("llamacpp_config").ServerConfig.load(str(tmp_path / CONFIG_NAME))
    assert dataclasses.asdict(read) == config


def test_adapter_and_program_agree_on_the_socket_and_the_types() -> None:
    program = load_program("llamacpp_config")
    assert program.SOCKET == SOCKET_NAME
    assert launched().files[SOCKET_NAME] == ""
    for name in program.CACHE_TYPES:
        assert config_of(launched(cache_type_k=name, cache_type_v=name))["cache_type_v"] == name


@pytest.mark.parametrize(
    ("listen", "address"), [("unix:/run/a.sock", "unix:/run/a.sock"), ("http://127.0.0.1:9", "127.0.0.1:9")]
)
def test_the_program_gets_the_address_in_its_own_form(listen: str, address: str) -> None:
    assert config_of(launched(listen))["address"] == address
    assert launched(listen).address == listen


def test_the_engine_inherits_nothing() -> None:
    assert launched().environ.keys() <= {
        "PATH",
        "HOME",
        "LANG",
        "PYTHONNOUSERSITE",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONFAULTHANDLER",
        "GGML_NO_BACKTRACE",
        "OMP_WAIT_POLICY",
    }
    assert launched().environ["HOME"] == "/launch"


def test_how_threads_wait_is_said_to_their_library_and_stands_in_the_fingerprint() -> None:
    assert launched().environ["OMP_WAIT_POLICY"] == launched().effective["thread_waiting"] == "passive"
    assert launched(thread_waiting="active").environ["OMP_WAIT_POLICY"] == "active"


def test_the_fingerprinted_configuration_has_every_setting_and_no_place() -> None:
    effective = launched().effective
    assert effective.keys() >= {setting.name for setting in ENGINE.settings(ROOM, {}, {})} | {"context_tokens"}
    assert [value for value in effective.values() if "/" in str(value)] == []
    assert launched("unix:/other").effective == effective


def test_the_engine_can_be_sized() -> None:
    assert isinstance(ENGINE, Sized)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 7)])
def test_a_core_is_left_for_what_is_not_the_engine(cores: int, threads: int) -> None:
    room = msgspec.structs.replace(ROOM, cores=cores)
    values = {setting.name: setting.value for setting in ENGINE.settings(room, {}, {})}
    assert values["threads"] == threads


def test_every_setting_has_a_reason_and_the_operator_wins() -> None:
    settings = ENGINE.settings(ROOM, {"threads": 2, "default_temperature": 1}, {"default_temperature": 0.2})
    assert all(setting.reason for setting in settings)
    values = {setting.name: (setting.value, setting.reason) for setting in settings}
    assert values["threads"] == (2, "the operator's setting")
    assert values["default_temperature"][0] == 1
    assert ENGINE.settings(ROOM, {}, {"default_temperature": 0.2, "other": 1.0})[-2].value == 0.2


@pytest.mark.parametrize(
    ("overrides", "says", "fix"),
    [
        ({"thread": 1}, "thread is no setting", "threads"),
        ({"gpu_layers": 1}, "gpu_layers is no setting", "use "),
        ({"threads": 0}, "threads is 0", "at least 1"),
        ({"threads": "2"}, "threads is '2'", "such as 1"),
        ({"kv_cache_bytes": 1}, "not set under settings", "limits.kv_cache"),
        ({"context_tokens": 1}, "not set under settings", "limits.context_tokens"),
        ({"cache_type_k": "q8"}, "cache_type_k is 'q8'", "q8_0"),
        ({"thread_waiting": "spin"}, "thread_waiting is 'spin'", "passive, active"),
        ({"max_batched_tokens": 4}, "max_batched_tokens is 4 for 8 requests", "token of every step"),
        ({"flash_attention": "auto"}, "flash_attention is 'auto'", "on, off"),
        ({"cache_type_v": "q8_0", "flash_attention": "off"}, "cache_type_v is 'q8_0'", "leave it on"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_to_write(
    overrides: dict[str, SettingValue], says: str, fix: str
) -> None:
    with pytest.raises(BadSetting, match=says) as caught:
        ENGINE.settings(ROOM, overrides, {})
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ('progress {"stage": "load", "done": 1, "total": 4, "text": "loading"}', Progress(stage="load", fraction=0.25)),
        ('progress {"stage": "load", "done": 1, "total": 0}', None),
        ("progress [1]", None),
        ("ready {}", None),
        ("", None),
    ],
)
def test_progress_lines_are_read_and_others_are_not(line: str, progress: Progress | None) -> None:
    assert ENGINE.read_progress(line) == progress


METRICS = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 67
llamacpp:tokens_predicted_total 27
llamacpp:n_decode_total 24
llamacpp:n_busy_slots_per_decode 1.125
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
"""


def test_metrics_are_read_under_llama_cpps_own_names() -> None:
    assert ENGINE.read_metrics(METRICS) == EngineMetrics(
        running=1, waiting=2, work_done=24, prompt_tokens=67, generated_tokens=27
    )


def test_what_the_engine_does_not_say_stays_absent() -> None:
    assert ENGINE.read_metrics("") == EngineMetrics()
    assert ENGINE.read_metrics(METRICS).kv_used_ratio is None


@pytest.mark.parametrize(
    ("weight_bytes", "measured_mb"),
    [
        ({"Q4_1": 66_355_200, "Q8_0": 30_081_024, "F32": 140_544}, 187),
        ({"Q4_0": 75_700_000, "F32": 140_544}, 240),
        ({"Q8_0": 142_920_000, "F32": 140_544}, 233),
        ({"F16": 268_900_000, "F32": 140_544}, 359),
        ({"Q4_1": 283_000_000, "F32": 562_176}, 381),
        ({"Q8_0": 481_500_000, "F32": 562_176}, 580),
    ],
)
def test_the_memory_that_was_measured_lies_in_the_predicted_interval(
    weight_bytes: dict[str, int], measured_mb: int
) -> None:
    foot = ENGINE.footprint(msgspec.structs.replace(SMOLLM2, weight_bytes=weight_bytes), 2048)
    assert foot.memory_low_bytes < measured_mb * 1e6 < foot.memory_high_bytes
    assert abs(foot.memory_bytes / (measured_mb * 1e6) - 1) < 0.05


@pytest.mark.parametrize(
    ("overrides", "per_token"),
    [
        ({}, 23_040),
        ({"cache_type_k": "f32", "cache_type_v": "f32"}, 46_080),
        # 8,192 tokens in each of 4 slots: resident memory was 45.0 MB more than this in F16, 44.9 in Q8_0.
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 12_240),
        ({"cache_type_k": "q8_0"}, 17_640),
        ({"cache_type_v": "q4_0"}, 14_760),
    ],
)
def test_kv_bytes_per_token_are_those_of_the_types(overrides: dict[str, SettingValue], per_token: int) -> None:
    assert ENGINE.kv_bytes_per_token(SMOLLM2, overrides) == per_token


def test_a_cache_type_that_is_none_is_refused_before_the_memory_is_planned() -> None:
    with pytest.raises(BadSetting, match="q9"):
        ENGINE.kv_bytes_per_token(SMOLLM2, {"cache_type_k": "q9"})


def test_a_model_with_another_kind_of_attention_is_planned_as_if_every_layer_kept_everything() -> None:
    gemma = msgspec.structs.replace(SMOLLM2, architecture="gemma3", kv_values_per_token=None, kv_unknown_because="SWA")
    assert ENGINE.kv_bytes_per_token(gemma, {}) == 23_040


@pytest.mark.parametrize("field", ["layers", "kv_heads", "head_dim", "value_dim"])
def test_where_the_header_does_not_say_the_shape_the_size_is_unknown(field: str) -> None:
    assert ENGINE.kv_bytes_per_token(msgspec.structs.replace(SMOLLM2, **{field: None}), {}) is None


def test_more_requests_at_once_than_it_has_slots_for_are_refused() -> None:
    with pytest.raises(BadSetting, match="at most 256") as caught:
        ENGINE.settings(msgspec.structs.replace(ROOM, max_sequences=300), {}, {})
    assert "max_in_flight" in caught.value.fix


LOADING = (
    'progress {"stage": "load", "done": 1, "total": 2}',
    "0.00.001.723 W srv          init: security: no API key is set",
)
ENDED = (
    "0.00.002.557 E llama_model_load_from_file_impl: failed to load model",
    "0.00.002.938 E srv          init: exiting due to model loading error",
    "error: RuntimeError: Failed to init server, please check the input params.",
)


@pytest.mark.parametrize(
    ("line", "kind", "permanent", "cause", "fix"),
    [
        (
            "E llama_model_load: error loading model: unknown model architecture: 'gemma9'",
            "model",
            True,
            "'gemma9'",
            "",
        ),
        (
            "E llama_model_load: error loading model: tensor 'blk.2.ffn_up.weight' data is not within the file bounds, "
            "model is corrupted or incomplete",
            "model",
            True,
            "blk.2.ffn_up.weight",
            "fetch the model again",
        ),
        (
            "E llama_model_load: error loading model: check_tensor_dims: tensor 'blk.3.ffn_up.weight' not found",
            "model",
            True,
            "tensor 'blk.3.ffn_up.weight' not found",
            "fetch",
        ),
        (
            "E llama_model_load: error loading model: error loading model hyperparameters: key not found in model: "
            "afmoe.context_length",
            "model",
            True,
            "lacks afmoe.context_length",
            "fetch",
        ),
        (
            "E gguf_init_from_reader: tensor 'blk.3.ffn_up.weight' has invalid ggml type 99. should be in [0, 43)",
            "model",
            True,
            "type (99)",
            "quantisation",
        ),
        (
            "E llama_model_load: error loading model: error loading model vocabulary: unknown pre-tokenizer type: 'z'",
            "model",
            True,
            "unknown pre-tokenizer type: 'z'",
            "converted",
        ),
        (
            "E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
            "model",
            True,
            "not GGUF",
            "fetch",
        ),
        (
            "E gguf_init_from_reader: this GGUF file is version 1852796448 but this software only supports up to "
            "version 3",
            "model",
            True,
            "not GGUF",
            "fetch",
        ),
        ("E gguf_init_from_reader: failed to read magic", "model", True, "not GGUF", "fetch"),
        (
            "E llama_init_from_model: quantized V cache requires flash_attn to be enabled",
            "bad_config",
            True,
            "flash_attention is off",
            "f16",
        ),
        (
            "E llama_init_from_model: failed to initialize the context: n_seq_max must be <= 256",
            "bad_config",
            True,
            "at most 256",
            "max_in_flight",
        ),
        (
            "E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
            "out_of_memory",
            False,
            "KV cache",
            "limits.kv_cache",
        ),
        (
            "E ggml_aligned_malloc: insufficient memory (attempted to allocate 720.00 MB)",
            "out_of_memory",
            False,
            "allocation",
            "free memory",
        ),
        (
            "E llama_model_load: error loading model: mmap failed: Cannot allocate memory",
            "out_of_memory",
            False,
            "allocation",
            "free memory",
        ),
    ],
)
def test_a_failure_is_named_with_its_cause_and_a_fix(
    line: str, kind: str, permanent: bool, cause: str, fix: str
) -> None:
    tail = (*LOADING, f"0.00.002.166 {line}", *ENDED)
    failure = ENGINE.explain_failure(ExitReport(code=1, signal=None, out_of_memory=False, tail=tail))
    assert (failure.kind, failure.permanent) == (kind, permanent)
    assert cause in failure.cause
    assert fix in failure.fix


@pytest.mark.parametrize(
    ("line", "kind", "cause"),
    [
        (
            "error: cannot serve on unix:/nowhere/x.sock: [Errno 2] No such file or directory",
            "crashed",
            "cannot listen",
        ),
        ("error: ModuleNotFoundError: No module named 'xllamacpp'", "bad_config", "xllamacpp"),
        ("error: the engine process was killed by SIGKILL (out of memory?)", "killed", "SIGKILL"),
        ("error: the engine process was killed by SIGILL", "crashed", "instruction"),
        ("error: the engine process exited with status 3", "crashed", "status 3"),
        ("error: threads must be an integer of at least 1", "crashed", "threads must be"),
    ],
)
def test_what_our_program_says_is_a_cause_too(line: str, kind: str, cause: str) -> None:
    failure = ENGINE.explain_failure(ExitReport(code=1, signal=None, out_of_memory=False, tail=(*LOADING, line)))
    assert failure.kind == kind
    assert cause in failure.cause


def test_an_assertion_is_named_before_the_signal_that_it_ends_with() -> None:
    tail = ("/x/llama-context.cpp:2289: GGML_ASSERT(n <= m) failed", "error: the engine process was killed by SIGABRT")
    failure = ENGINE.explain_failure(ExitReport(code=1, signal=None, out_of_memory=False, tail=tail))
    assert (failure.kind, "n <= m" in failure.cause) == ("crashed", True)


def test_a_warning_is_no_cause() -> None:
    tail = ("0.01.396.218 W llama_context: Cannot allocate memory for fun",)
    failure = ENGINE.explain_failure(ExitReport(code=None, signal=15, out_of_memory=False, tail=tail))
    assert (failure.kind, "SIGTERM" in failure.cause) == ("killed", True)


def test_the_kernels_word_on_memory_comes_first() -> None:
    failure = ENGINE.explain_failure(ExitReport(code=None, signal=9, out_of_memory=True, tail=ENDED))
    assert failure.kind == "out_of_memory"
