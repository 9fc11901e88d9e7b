"""References: what people type, and what it becomes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import LLAMA, STRING, U32, TensorSpec, gguf

from modelyard.errors import ModelRefused, ModelyardError, UsageError
from modelyard.models.catalogue import ENTRIES, SMOLLM2
from modelyard.models.reader import read_card
from modelyard.models.sources import resolve
from modelyard.settings import Settings, load
from modelyard.state import StateDirectory

NO_SETTINGS: Settings = load({"HOME": "/nonexistent", "MODELYARD_OFFLINE": "1"})


def folder(at: Path) -> Path:
    at.mkdir(parents=True)
    header = b'{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
    (at / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (at / "config.json").write_text(json.dumps({"model_type": "qwen3", "num_hidden_layers": 2}))
    return at


def test_a_gguf_file_is_used_where_it_lies(state: StateDirectory, tmp_path: Path) -> None:
    path = tmp_path / "Tiny.Q4.gguf"
    path.write_bytes(gguf())
    artifact = resolve(str(path), state, NO_SETTINGS)
    assert (artifact.name, artifact.format, artifact.path) == ("Tiny.Q4", "gguf", str(path))
    assert artifact.size_bytes == path.stat().st_size
    assert len(artifact.sha256) == 64


def test_a_relative_path_becomes_absolute(
    state: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(gguf())
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny.gguf", state, NO_SETTINGS).path == str(tmp_path / "tiny.gguf")


def test_a_folder_is_used_where_it_lies_and_hashed_whole(state: StateDirectory, tmp_path: Path) -> None:
    model = folder(tmp_path / "model")
    first = resolve(str(model), state, NO_SETTINGS)
    assert (first.name, first.format, first.path) == ("model", "huggingface", str(model))
    assert resolve(str(model), state, NO_SETTINGS) == first
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "num_hidden_layers": 3}))
    assert resolve(str(model), state, NO_SETTINGS).sha256 != first.sha256


def test_a_snapshot_of_a_cache_is_named_by_its_repository(state: StateDirectory, tmp_path: Path) -> None:
    model = folder(tmp_path / "models--someone--Tiny-Chat" / "snapshots" / "abc")
    assert resolve(str(model), state, NO_SETTINGS).name == "Tiny-Chat"


def test_local_files_pass_the_gate_and_the_header_check(state: StateDirectory, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(gguf()[:-1])
    with pytest.raises(ModelRefused, match="end within"):
        resolve(str(path), state, NO_SETTINGS)
    model = folder(tmp_path / "model")
    (model / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelRefused, match="pickle"):
        resolve(str(model), state, NO_SETTINGS)


@pytest.mark.parametrize("name", ["model.txt", "model.onnx", "model"])
def test_a_file_of_another_kind_is_no_model(state: StateDirectory, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gguf())
    with pytest.raises(UsageError, match="no model file"):
        resolve(str(tmp_path / name), state, NO_SETTINGS)


REFUSED = {
    "pytorch_model.bin": "{} is refused: it may be a pickle, which runs code when it is loaded",
    "model.pt": "{} is refused: it may be a pickle, which runs code when it is loaded",
    "consolidated.00.PTH": "{} is refused: it may be a pickle, which runs code when it is loaded",
    "model.zip": "{} is refused: archives are not unpacked: their members escape every check",
    "modeling_tiny.py": "{} is refused: it is code, and would run with our rights",
    "model-00001-of-00002.safetensors": "{} is a part of a model",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_never_served_is_refused_in_a_sentence_with_a_way_out(
    state: StateDirectory, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04")
    with pytest.raises(ModelyardError) as caught:
        resolve(str(path), state, NO_SETTINGS)
    assert caught.value.message == REFUSED[name].format(path)
    assert "safetensors or GGUF form" in caught.value.hint or "name its folder" in caught.value.hint


BROKEN = {
    "cut off": (lambda content: content[:-100], "expected an end within the file's"),
    "cut in its header": (lambda content: content[:200], "expected"),
    "empty": (lambda content: b"", "is refused: it does not begin with GGUF"),
    "another file by this name": (lambda content: b"<html>404</html>", "is refused: it does not begin with GGUF"),
    "a pickle by this name": (lambda content: b"\x80\x04 pickle", "is refused: it does not begin with GGUF"),
    "of the first version": (lambda content: content[:4] + b"\1\0\0\0" + content[8:], "GGUF version 1"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_gguf_names_itself_what_is_wrong_and_what_to_do(
    state: StateDirectory, tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(change(gguf()))
    with pytest.raises(ModelRefused) as caught:
        resolve(str(path), state, NO_SETTINGS)
    assert "tiny.gguf" in caught.value.message and words in caught.value.message
    assert caught.value.hint


# ggml's numbers of the types, with the bytes of 192 elements.
TYPES = {"F16": (1, 1, 384), "Q4_1": (3, 3, 120), "Q8_0": (8, 7, 204), "Q4_0": (2, 2, 108)}


@pytest.mark.parametrize("name", TYPES)
def test_the_usual_types_pass_and_are_called_by_their_names(state: StateDirectory, tmp_path: Path, name: str) -> None:
    kind, file_type, size_bytes = TYPES[name]
    path = tmp_path / f"tiny.{name}.gguf"
    metadata = {**LLAMA, "general.file_type": (U32, file_type)}
    path.write_bytes(gguf(metadata, [TensorSpec("token_embd.weight", (64, 3), kind, size_bytes)]))
    artifact = resolve(str(path), state, NO_SETTINGS)
    card = read_card(Path(artifact.path))
    assert (card.quantisation, card.weight_bytes) == (name, {name: size_bytes})


def test_a_pipe_is_refused_without_waiting_for_a_writer(state: StateDirectory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelRefused, match="regular file"):
        resolve(str(tmp_path / "pipe.gguf"), state, NO_SETTINGS)


def test_a_folder_that_is_no_model_is_said_to_be_none(state: StateDirectory, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json") as caught:
        resolve(str(tmp_path), state, NO_SETTINGS)
    assert "Hugging Face folder" in caught.value.hint


def test_an_unknown_name_lists_what_is_understood_and_what_is_close(state: StateDirectory) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("smolm2", state, NO_SETTINGS)
    assert "did you mean smollm2?" in caught.value.hint
    assert ".gguf" in caught.value.hint
    assert "config.json" in caught.value.hint


@pytest.mark.parametrize("reference", ["", "a\x1bb", "\udcff.gguf", "no\0where"])
def test_what_cannot_be_a_name_is_refused_as_such(state: StateDirectory, reference: str) -> None:
    with pytest.raises(UsageError):
        resolve(reference, state, NO_SETTINGS)


def test_the_catalogue_is_consistent() -> None:
    for name, entry in ENTRIES.items():
        assert entry.name == name
        assert len(bytes.fromhex(entry.file.sha256)) == 32
        assert not Path(entry.file.member).is_absolute()
        assert ".." not in Path(entry.file.member).parts
        assert Path(entry.file.member).suffix == f".{entry.format}"


def test_eight_probes_with_a_margin_that_no_rounding_overturns() -> None:
    assert len(SMOLLM2.probes) == 8
    assert len({probe.prompt for probe in SMOLLM2.probes}) == 8
    assert min(probe.margin for probe in SMOLLM2.probes) >= 0.3
    assert {probe.kind for probe in SMOLLM2.probes} == {"chat", "completion"}


def test_a_name_in_the_header_is_only_a_name(state: StateDirectory, tmp_path: Path) -> None:
    """Nothing inside a model decides where anything lies."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf({**LLAMA, "general.name": (STRING, "../../etc/passwd")}))
    assert resolve(str(path), state, NO_SETTINGS).name == "tiny"
