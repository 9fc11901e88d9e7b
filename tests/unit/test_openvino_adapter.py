"""The adapter's words against recorded ones of the real engine (OpenVINO GenAI 2026.4.1)."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from modelyard.engines.contract import Addresses, EngineMetrics, ExitReport, Installed, LaunchSpec, Progress
from modelyard.engines.openvino import PROGRAM, OpenVino
from modelyard.engines.sizing import Room, Sized
from modelyard.records.plan import Artifact, ReplicaPlan, Setting

ENGINE = OpenVino()
ROOM = Room(
    cores=2,
    context_tokens=4096,
    max_sequences=8,
    kv_cache_bytes=1 << 29,
    hang_timeout_s=20.0,
    because={"kv_cache_bytes": "x", "max_sequences": "y"},
)
CONFIG_NAME = f"{PROGRAM.stem}.json"
INSTALLED = Installed(engine="openvino", version="1", python="/env/bin/python", root="/env", lock_sha256="0")


def launched(listen: str = "unix:/run/a.sock", *extra: Setting) -> LaunchSpec:
    artifact = Artifact(name="m", format="gguf", path="/s/m.gguf", sha256="0", size_bytes=1, lineage="")
    replica = ReplicaPlan(
        name="d-0",
        engine="openvino",
        served_name="d",
        artifact=artifact,
        max_in_flight=8,
        context_tokens=4096,
        settings=(*ENGINE.settings(ROOM, {}, {}), *extra),
    )
    return ENGINE.launch(replica, INSTALLED, Addresses(listen=listen, folder="/launch"))


def config_of(spec: LaunchSpec) -> dict[str, object]:
    return json.loads(spec.files[CONFIG_NAME])


def test_the_command_line_is_the_program_in_its_own_environment() -> None:
    assert launched().argv == ("/env/bin/python", str(PROGRAM), "--config", f"/launch/{CONFIG_NAME}")
    assert PROGRAM.is_file()


def test_the_configuration_is_whole_and_the_program_accepts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    from openvino_config import ServerConfig

    config = config_of(launched())
    (tmp_path / "m.gguf").touch()
    config["model_path"] = str(tmp_path / "m.gguf")
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    read = ServerConfig.load(str(tmp_path / CONFIG_NAME))
    assert dataclasses.asdict(read) == config


def test_capitals_go_to_the_plugin_and_nothing_else_does() -> None:
    config = config_of(launched("unix:/a", Setting(name="NUM_STREAMS", value=1, reason="r")))
    assert config["properties"] == {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "u8",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        "NUM_STREAMS": "1",
    }


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
    }
    assert launched().environ["HOME"] == "/launch"


def test_the_fingerprinted_configuration_has_every_setting_and_no_place() -> None:
    effective = launched().effective
    assert effective.keys() >= {setting.name for setting in ENGINE.settings(ROOM, {}, {})} | {"context_tokens"}
    assert [value for value in effective.values() if "/" in str(value)] == []
    assert launched("unix:/other").effective == effective


def test_the_engine_can_be_sized() -> None:
    assert isinstance(ENGINE, Sized)


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ('progress {"stage": "load", "done": 1, "total": 4, "text": "loading"}', Progress(stage="load", fraction=0.25)),
        ('progress {"stage": "warm", "done": 3, "total": 3}', Progress(stage="warm", fraction=1.0)),
        ('progress {"stage": "load", "done": 1, "total": 0}', None),
        ("progress", None),
        ("progress [1]", None),
        ("ready {}", None),
        ("", None),
    ],
)
def test_progress_lines_are_read_and_others_are_not(line: str, progress: Progress | None) -> None:
    assert ENGINE.read_progress(line) == progress


def test_metrics_are_read_under_the_names_that_the_program_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    from openvino_metrics import render_metrics

    stats = {"running": 2, "waiting": 1, "steps": 40, "generated": 30, "prompt": 500, "kv_usage": 0.5}
    text = render_metrics(stats, {"scheduler": {"kv_cache_bytes": 1}}, 0.1)
    assert ENGINE.read_metrics(text) == EngineMetrics(
        running=2, waiting=1, work_done=40, prompt_tokens=500, generated_tokens=30, kv_used_ratio=0.5
    )


def test_what_the_engine_does_not_say_yet_stays_absent() -> None:
    assert ENGINE.read_metrics("modelyard_engine_ready 0\n") == EngineMetrics()


RUNTIME = "error: RuntimeError: Exception from src/inference/src/cpp/core.cpp:117: Exception from src/plugins/x.cpp:5: "


@pytest.mark.parametrize(
    ("line", "code", "kind", "permanent", "cause", "fix"),
    [
        ("error: model_path /nowhere.gguf does not exist", 2, "model", True, "not at /nowhere.gguf", "fetch"),
        (
            "error: GeometryError: cannot read the KV shape of /s/x.gguf: ValueError: not a GGUF file",
            1,
            "model",
            True,
            "header is damaged: ValueError: not a GGUF file",
            "fetch the model again",
        ),
        (
            "error: RuntimeError: Check 'data != nullptr' failed at /build/gguf.cpp:84: [load_gguf] "
            "gguf_tensor_to_f16 failed",
            1,
            "model",
            True,
            "tensors of a type",
            "Q8_0",
        ),
        ("error: RuntimeError: unordered_map::at", 1, "model", True, "tensors of a type", "Q8_0"),
        (
            "error: RuntimeError: Exception from /b/building_blocks.cpp:716: Unsupported quantization type",
            1,
            "model",
            True,
            "tensors of a type",
            "F16",
        ),
        (
            "error: RuntimeError: Exception from /b/gguf_modeling.cpp:166: Unsupported model architecture 'gemma'",
            1,
            "model",
            True,
            "'gemma'",
            "llama",
        ),
        (
            RUNTIME + "NotFound: Unsupported property NO_SUCH by CPU plugin.",
            1,
            "bad_config",
            True,
            "no property NO_SUCH",
            "settings",
        ),
        (
            RUNTIME + "Wrong value f7 for property key INFERENCE_PRECISION_HINT. Supported values: bf16, f16, f32",
            1,
            "bad_config",
            True,
            "INFERENCE_PRECISION_HINT has a wrong value",
            "bf16, f16, f32",
        ),
        (
            RUNTIME + "Wrong value for property key DYNAMIC_QUANTIZATION_GROUP_SIZE. Expected only unsigned integers",
            1,
            "bad_config",
            True,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE has",
            "Expected only unsigned",
        ),
        (
            "error: GeometryError: KV_CACHE_PRECISION 'u7' is not one of u8, f32, f16, bf16",
            1,
            "bad_config",
            True,
            "u7",
            "u8",
        ),
        (
            "error: ValueError: kv_cache_bytes 1000 holds fewer than 4 blocks of 437760 bytes",
            1,
            "does_not_fit",
            True,
            "1000 bytes",
            "raise limits.kv_cache",
        ),
        (
            "error: RuntimeError: Check 'total <= available' failed at /b/cache_orchestrator.hpp:916: Requested cache "
            "blocks require more memory than available on the system.",
            1,
            "does_not_fit",
            False,
            "free now",
            "limits.kv_cache",
        ),
        (RUNTIME + "std::bad_alloc", 1, "out_of_memory", False, "allocation", "free memory"),
        (RUNTIME + "Resource temporarily unavailable", 1, "out_of_memory", False, "allocation", "free memory"),
        ("error: unknown key 'zzz'; known: address", 2, "bad_config", True, "unknown key 'zzz'", "settings"),
        ("error: threads must be an integer of at least 1", 2, "bad_config", True, "threads must be", "settings"),
        (
            "error: cannot serve on unix:/nowhere/x.sock: [Errno 2] No such file or directory",
            1,
            "crashed",
            False,
            "cannot listen on unix:/nowhere/x.sock",
            "state directory",
        ),
        ("error: the stepping process was killed by SIGSEGV", 1, "crashed", False, "SIGSEGV", "cut short"),
        ("error: the stepping process was killed by SIGKILL (out of memory?)", 1, "killed", False, "SIGKILL", "memory"),
        ("error: the stepping process was killed by SIGILL", 1, "crashed", True, "instruction", "another engine"),
        (
            "error: ModuleNotFoundError: No module named 'openvino_genai'",
            1,
            "bad_config",
            True,
            "openvino_genai",
            "environment",
        ),
        (RUNTIME + "something new", 1, "crashed", False, "exit code 1: something new", "log"),
    ],
)
def test_a_failure_is_named_with_its_cause_and_a_fix(
    line: str, code: int, kind: str, permanent: bool, cause: str, fix: str
) -> None:
    tail = ('progress {"stage": "load", "done": 1, "total": 3}', line)
    failure = ENGINE.explain_failure(ExitReport(code=code, signal=None, out_of_memory=False, tail=tail))
    assert (failure.kind, failure.permanent) == (kind, permanent)
    assert cause in failure.cause
    assert fix in failure.fix
    assert ".cpp:" not in failure.cause


@pytest.mark.parametrize(
    ("code", "signal", "out_of_memory", "kind", "cause"),
    [
        (None, 9, True, "out_of_memory", "out of memory"),
        (None, 9, False, "killed", "SIGKILL"),
        (None, 15, False, "killed", "SIGTERM"),
        (None, 11, False, "crashed", "SIGSEGV: last words"),
        (1, None, False, "crashed", "exit code 1: last words"),
        (2, None, False, "bad_config", "refused its configuration"),
    ],
)
def test_an_end_without_an_error_line_is_named_by_how_it_ended(
    code: int | None, signal: int | None, out_of_memory: bool, kind: str, cause: str
) -> None:
    report = ExitReport(code=code, signal=signal, out_of_memory=out_of_memory, tail=("last words", ""))
    failure = ENGINE.explain_failure(report)
    assert failure.kind == kind
    assert cause in failure.cause
    assert failure.fix


def test_a_silent_end_is_named_too() -> None:
    failure = ENGINE.explain_failure(ExitReport(code=3, signal=None, out_of_memory=False, tail=()))
    assert "no word in its log" in failure.cause


def test_the_program_refuses_an_absent_model_in_the_words_that_we_know(tmp_path: Path) -> None:
    import subprocess

    config = {**config_of(launched()), "model_path": "/nowhere.gguf"}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    command = [sys.executable, str(PROGRAM), "--config", str(tmp_path / CONFIG_NAME)]
    done = subprocess.run(command, capture_output=True, text=True)
    tail = (*done.stdout.splitlines(), *done.stderr.splitlines())
    failure = ENGINE.explain_failure(ExitReport(code=done.returncode, signal=None, out_of_memory=False, tail=tail))
    assert (failure.kind, failure.permanent) == ("model", True)
