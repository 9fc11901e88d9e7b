"""The adapter's words against recorded ones of the real engine (xllamacpp 2026.10.11549)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from modelyard.engines.contract import Addresses, EngineMetrics, ExitReport, Installed, LaunchSpec, Progress
from modelyard.engines.llamacpp import CONFIG_NAME, PROGRAM, SOCKET_NAME, LlamaCpp
from modelyard.engines.sizing import BadSetting, Room, SettingValue, Sized
from modelyard.models.card import Card
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
    }
    assert launched().environ["HOME"] == "/launch"


def test_the_fingerprinted_configuration_has_every_setting_and_no_place() -> None:
    effective = launched().effective
    assert effective.keys() >= {setting.name for setting in ENGINE.settings(ROOM, {}, {})} | {"context_tokens"}
    assert [value for value in effective.values() if "/" in str(value)] == []
    assert launched("unix:/other").effective == effective


def test_the_engine_can_be_sized() -> None:
    assert isinstance(ENGINE, Sized)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 7)])
def test_a_core_is_left_for_what_is_not_the_engine(cores: int, threads: int) -> None:
    import msgspec

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
