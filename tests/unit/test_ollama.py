"""Reading Ollama's store: a model is used where it lies, or refused with the reason; nothing there is changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_files import gguf

from modelyard.errors import FetchFailed, ModelRefused, UsageError
from modelyard.models.reader import read_card
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.settings import Settings, load
from modelyard.state import StateDirectory

CONTENT = gguf()
PREFIX = "application/vnd.ollama.image."


class OllamaStore:
    """Writes what Ollama would have written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        path = self.root / "blobs" / f"sha256-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"sha256:{name}"

    def layer(self, kind: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": f"{PREFIX}{kind}", "digest": self.blob(content), "size": len(content)}

    def manifest(self, name: str, tag: str, *layers: dict[str, Any], namespace: str = "library") -> Path:
        path = self.root / "manifests" / "registry.example" / namespace / name / tag
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"schemaVersion": 2, "layers": list(layers)}))
        return path


@pytest.fixture
def ollama(tmp_path: Path) -> OllamaStore:
    store = OllamaStore(tmp_path / "models")
    store.manifest(
        "tiny",
        "latest",
        store.layer("model", CONTENT),
        store.layer("license", b"\n  Apache License\nVersion 2.0\n"),
        store.layer("template", b"{{ .Prompt }}"),
        store.layer("params", json.dumps({"temperature": 0.6, "top_p": 0.9, "stop": ["x"], "num_ctx": 4096}).encode()),
        store.layer("system", b"You are a pirate."),
    )
    return store


@pytest.fixture
def settings(ollama: OllamaStore) -> Settings:
    return load({"HOME": "/nonexistent", "OLLAMA_MODELS": str(ollama.root)})


def test_a_model_is_used_where_it_lies(state: StateDirectory, settings: Settings, ollama: OllamaStore) -> None:
    artifact = resolve("ollama://tiny", state, settings)
    path = Path(artifact.path)
    assert path.name == "tiny-latest.gguf", "engines read the format off the suffix"
    assert path.resolve() == (ollama.root / "blobs" / f"sha256-{artifact.sha256}").resolve()
    assert artifact.lineage == "ollama://tiny:latest, used in place from Ollama's store"
    assert artifact.recommended == {"default_temperature": 0.6, "default_top_p": 0.9}
    assert read_card(path).architecture == "llama"
    [stored] = Store(state).stored()
    assert stored.licence == "Apache License"
    assert not list((Store(state).root / "blobs").rglob("*"))


def test_what_is_not_applied_is_said(state: StateDirectory, settings: Settings) -> None:
    notes = " ".join(resolve("ollama://tiny", state, settings).notes)
    for words in ("parameter stop", "parameter num_ctx", "system prompt", "chat template of the GGUF file"):
        assert words in notes


def test_a_second_look_changes_nothing_and_a_pull_is_seen(
    state: StateDirectory, settings: Settings, ollama: OllamaStore
) -> None:
    first = resolve("ollama://tiny", state, settings)
    assert resolve("ollama://tiny:latest", state, settings) == first
    ollama.manifest("tiny", "latest", ollama.layer("model", gguf(data_bytes=4096)))
    assert resolve("ollama://tiny", state, settings).sha256 != first.sha256


def test_removing_it_from_our_store_leaves_ollamas_alone(
    state: StateDirectory, settings: Settings, ollama: OllamaStore
) -> None:
    artifact = resolve("ollama://tiny", state, settings)
    store = Store(state)
    with store.writing() as writer:
        writer.remove(store.stored()[0].name)
        writer.garbage()
    assert (ollama.root / "blobs" / f"sha256-{artifact.sha256}").read_bytes() == CONTENT


def test_the_names_that_exist_are_told(state: StateDirectory, settings: Settings, ollama: OllamaStore) -> None:
    ollama.manifest("tiny", "1b", ollama.layer("model", CONTENT))
    ollama.manifest("mine", "v1", ollama.layer("model", CONTENT), namespace="me")
    with pytest.raises(UsageError, match=r"ollama://tiny:2b is not in Ollama's store") as caught:
        resolve("ollama://tiny:2b", state, settings)
    assert "ollama://tiny:1b, ollama://tiny:latest" in caught.value.hint
    assert resolve("ollama://me/mine:v1", state, settings).name == "mine-v1"


def test_no_store_at_all_names_where_was_looked(state: StateDirectory, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="looked in ") as caught:
        resolve("ollama://tiny", state, load({"HOME": str(tmp_path)}))
    assert str(tmp_path / ".ollama" / "models") in caught.value.message
    assert "OLLAMA_MODELS" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "words"), [("adapter", "LoRA adapter"), ("projector", "separate projector"), ("tensor", "single tensors")]
)
def test_what_the_weights_alone_would_not_be_is_refused(
    state: StateDirectory, settings: Settings, ollama: OllamaStore, kind: str, words: str
) -> None:
    ollama.manifest("more", "latest", ollama.layer("model", CONTENT), ollama.layer(kind, b"x"))
    with pytest.raises(ModelRefused, match=words):
        resolve("ollama://more", state, settings)
    assert Store(state).stored() == []


def test_a_model_of_the_cloud_has_no_weights(state: StateDirectory, settings: Settings, ollama: OllamaStore) -> None:
    ollama.manifest("cloud", "latest", ollama.layer("license", b"x"))
    with pytest.raises(ModelRefused, match="0 files of weights") as caught:
        resolve("ollama://cloud", state, settings)
    assert "cloud" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:../../../../../../etc/passwd"},
        {"digest": "sha256-" + "0" * 63},
        {"digest": "md5:" + "0" * 64},
        {"size": -1},
        {"size": "1"},
        {"mediaType": "text/plain"},
    ],
)
def test_a_digest_becomes_part_of_a_path_only_when_it_is_one(
    state: StateDirectory, settings: Settings, ollama: OllamaStore, change: dict[str, Any]
) -> None:
    ollama.manifest("evil", "latest", ollama.layer("model", CONTENT) | change)
    with pytest.raises(ModelRefused, match="not understood"):
        resolve("ollama://evil", state, settings)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "its SHA-256 is": lambda blob: blob.write_bytes(b"z" + CONTENT[1:]),
    "bytes, not the": lambda blob: blob.write_bytes(CONTENT + b"x"),
    "cannot be read": lambda blob: blob.unlink(),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_blob_is_not_served(
    state: StateDirectory, settings: Settings, ollama: OllamaStore, words: str
) -> None:
    blob = ollama.root / "blobs" / f"sha256-{hashlib.sha256(CONTENT).hexdigest()}"
    DAMAGE[words](blob)
    with pytest.raises(FetchFailed, match=words):
        resolve("ollama://tiny", state, settings)


def test_a_blob_that_is_no_gguf_is_refused_under_its_name(
    state: StateDirectory, settings: Settings, ollama: OllamaStore
) -> None:
    ollama.manifest("bad", "latest", ollama.layer("model", b"\x80\x04 a pickle"))
    with pytest.raises(ModelRefused, match=r"ollama://bad:latest@\w+ is refused: it does not begin with GGUF"):
        resolve("ollama://bad", state, settings)
    assert Store(state).stored() == []


def test_a_store_that_went_away_is_missed_at_the_next_look(
    state: StateDirectory, settings: Settings, ollama: OllamaStore
) -> None:
    resolve("ollama://tiny", state, settings)
    shutil.rmtree(ollama.root)
    with pytest.raises(UsageError, match="no store of Ollama"):
        resolve("ollama://tiny", state, settings)
