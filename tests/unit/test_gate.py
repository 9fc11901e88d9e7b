"""The file gate: data passes, anything that could run does not."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from gguf_files import gguf

from modelyard.errors import ModelRefused
from modelyard.models.gate import check_folder, check_gguf
from modelyard.models.reader import read_card

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "model_configs"
CONFIG = json.dumps({"model_type": "llama"})


def safetensors_bytes() -> bytes:
    header = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A clean model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"auto_map": 7}}}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "README.md").write_text("# Model\n")
    return folder


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelRefused) as caught:
        check_folder(folder)
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


def test_a_clean_folder_passes_with_its_files_sorted(model: Path) -> None:
    (model / ".cache").mkdir()
    (model / ".cache" / "download.lock").write_text("")
    names = [path.name for path in check_folder(model)]
    assert names == ["README.md", "config.json", "merges.txt", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.PKL", "a.ckpt", "a.joblib", "sub/a.npy"])
def test_pickles_are_refused_by_name(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"harmless")
    refused(model, Path(name).name, "pickle")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["weights", "weights.safetensors", "tokenizer.model", "notes.txt"])
def test_pickles_are_refused_by_content_whatever_their_name(model: Path, protocol: int, name: str) -> None:
    (model / name).write_bytes(pickle.dumps({"a": [1, 2, 3] * 10}, protocol=protocol))
    refused(model, name, "pickle")


def archives() -> dict[str, bytes]:
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../x"))
    return {
        "zip": packed.getvalue(),
        "tar": tarred.getvalue(),
        "gzip": gzip.compress(b"x"),
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(32),
        "xz": b"\xfd7zXZ\x00" + bytes(8),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(8),
    }


@pytest.mark.parametrize("kind", archives())
def test_archives_are_refused_by_content(model: Path, kind: str) -> None:
    (model / "extra.data").write_bytes(archives()[kind])
    refused(model, "extra.data", "archive")


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01", b"#!/bin/sh\n"])
def test_executables_are_refused_by_content(model: Path, content: bytes) -> None:
    (model / "tool").write_bytes(content)
    refused(model, "tool", "code")


@pytest.mark.parametrize("name", ["modeling_x.py", "sub/__init__.py", "kernel.so", "run.sh"])
def test_code_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("")
    refused(model, Path(name).name, "code")


def test_a_safetensors_length_that_looks_like_a_magic_number_passes(model: Path) -> None:
    """0x8b1f bytes of header begin like gzip; what follows shows that they are a length."""
    header = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(0x8B1F)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    check_folder(model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "sub/processor_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        {"auto_map": {"AutoModel": "modeling_x.X"}},
        {"text_config": {"deep": [{"auto_map": {"AutoModel": "modeling_x.X"}}]}},
        {"trust_remote_code": True},
        {"custom_pipelines": {"x": {"impl": "x.X"}}},
    ],
)
def test_remote_code_is_refused_wherever_it_is_asked_for(model: Path, file: str, content: object) -> None:
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text(json.dumps(content))
    refused(model, Path(file).name, "run code")


def test_a_configuration_that_switches_remote_code_off_passes(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"trust_remote_code": False, "auto_map": None}))
    check_folder(model)


@pytest.mark.parametrize("content", [b"[1]", b"{", b'{"a":1,"a":2}', b"\xff\xfe", b"[" * 200_000])
def test_a_configuration_that_is_no_proper_json_object_is_refused(model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    refused(model, "config.json")


def test_links_that_leave_the_folder_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    (model / "link.json").symlink_to("../outside.json")
    refused(model, "link.json", "out of the folder")


def test_links_to_folders_and_loops_and_nowhere_are_refused(model: Path) -> None:
    (model / "sub").mkdir()
    (model / "again").symlink_to("sub")
    refused(model, "again", "regular file")
    (model / "again").unlink()
    (model / "loop").symlink_to("loop")
    refused(model, "loop")
    (model / "loop").unlink()
    (model / "nowhere").symlink_to("absent")
    refused(model, "nowhere", "cannot be read")


def test_links_inside_the_folder_pass(model: Path) -> None:
    (model / "copy.json").symlink_to("config.json")
    check_folder(model)


def cache(tmp_path: Path) -> Path:
    """The layout of a Hugging Face cache: files of a snapshot are links into blobs."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, data in (("config.json", CONFIG.encode()), ("model.safetensors", safetensors_bytes())):
        (repository / "blobs" / f"hash-{name}").write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/hash-{name}")
    return snapshot


def test_a_snapshot_of_a_hugging_face_cache_passes(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    assert [path.name for path in check_folder(snapshot)] == ["config.json", "model.safetensors"]
    assert read_card(snapshot).total_weight_bytes == 4


@pytest.mark.parametrize("target", ["../../refs/main", "../../../models--other--x/blobs/h", "../../../../secret"])
def test_a_snapshot_reaches_only_the_blobs_of_its_own_repository(tmp_path: Path, target: str) -> None:
    snapshot = cache(tmp_path)
    outside = Path(os.path.normpath(snapshot / target))
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_text("{}")
    (snapshot / "extra.json").symlink_to(target)
    refused(snapshot, "extra.json", "out of the folder")


def test_a_folder_merely_named_like_a_cache_gets_no_more_rights(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    plain = tmp_path / "hub" / "plain"
    snapshot.parent.parent.rename(plain)
    refused(plain / "snapshots" / "abc123", "out of the folder")


def test_special_files_are_refused_without_being_opened(model: Path) -> None:
    os.mkfifo(model / "pipe.json")
    refused(model, "pipe.json", "regular file")
    (model / "pipe.json").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(model / "socket.json"))
        refused(model, "socket.json", "regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_refused(model: Path) -> None:
    (model / "config.json").chmod(0)
    refused(model, "config.json", "may not be read")


def test_names_that_no_terminal_should_print_are_refused(model: Path) -> None:
    (model / "a\x1b[2J.txt").write_text("")
    refused(model, "not printable")
    (model / "a\x1b[2J.txt").unlink()
    Path(os.fsdecode(os.fsencode(model) + b"/\xff.txt")).write_text("")
    refused(model, "not printable")


def test_a_folder_without_safetensors_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    refused(model, "no safetensors")


def test_a_bottomless_folder_is_refused(model: Path) -> None:
    deep = model
    for _ in range(20):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x.txt").write_text("")
    refused(model, "deeper")


def test_a_gguf_file_passes_by_its_content_only(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    good.write_bytes(gguf())
    bad.write_bytes(pickle.dumps([1]))
    link = tmp_path / "link.gguf"
    link.symlink_to(good)
    check_gguf(good)
    check_gguf(link)
    for path in (bad, tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ModelRefused):
            check_gguf(path)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="no collection of published configurations here")
def test_published_configurations_that_bring_code_are_refused_and_the_others_pass(model: Path) -> None:
    verdicts: dict[bool, int] = {True: 0, False: 0}
    for path in sorted(CONFIGS.glob("*_config.json")):
        data = path.read_bytes()
        (model / "config.json").write_bytes(data)
        brings_code = bool(json.loads(data).get("auto_map"))
        verdicts[brings_code] += 1
        if brings_code:
            refused(model, "auto_map")
        else:
            check_folder(model)
    assert verdicts[True] > 10
    assert verdicts[False] > 50
