"""Models that Ollama has fetched already: read from its store, used in place, nothing written there.

    manifests/HOST/NAMESPACE/MODEL/TAG     JSON: layers by kind, each with the digest and size of a blob
    blobs/sha256-HASH                      the content

A name is looked up in the list of manifests that exist and never becomes part of a path; a digest becomes one only
when it is 64 hexadecimal digits. (In 2024 Ollama itself joined digests to paths as they came: CVE-2024-37032.)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.errors import FetchFailed, ModelRefused, UsageError
from modelyard.models.card import UNKNOWN, printable
from modelyard.models.hashing import Progress
from modelyard.models.json_files import JsonObject, is_array, is_object, read_json_object
from modelyard.models.publishing import publish_checked
from modelyard.models.references import OllamaReference
from modelyard.models.store import Store
from modelyard.models.stored import StoredArtifact, StoredFile

MAX_TEXT_BYTES = 1 << 20
MAX_MANIFESTS = 10_000
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_KIND = re.compile(r"application/vnd\.ollama\.image\.(\w+)")
# Layers without which the model is not what its name says.
_REFUSED = {
    "adapter": "it is a base model with a LoRA adapter, and no engine here takes the two together",
    "projector": "it sees images through a separate projector, and only text is served",
    "tensor": "its weights are in Ollama's own form of single tensors",
}
# Of its parameters, what engines here know as their default.
_MAPPED = {"temperature": "default_temperature", "top_p": "default_top_p"}


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """What a manifest says, its digests and sizes checked for form. `blob` exists and is not yet hashed."""

    reference: OllamaReference
    blob: Path
    sha256: str
    size_bytes: int
    licence: str = UNKNOWN
    recommended: dict[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()


def link_from_ollama(
    reference: OllamaReference, stores: Sequence[Path], store: Store, on_progress: Progress
) -> StoredArtifact:
    """The artifact of what the name means in Ollama's store at this moment, used where it lies.

    Raises UsageError where there is no such model, ModelRefused where it may not be served."""
    model = read_model(reference, stores)
    found = store.hashes.of_file(model.blob, on_progress)
    if found != model.sha256:
        raise FetchFailed(
            f"{reference}: Ollama's copy is damaged: its SHA-256 is {found}, not {model.sha256}",
            hint=f"ollama rm {reference.model}:{reference.tag} && ollama pull {reference.model}:{reference.tag}",
        )
    artifact = _artifact(model)
    if store.find(artifact.name) == artifact:
        return artifact
    with store.writing() as writer:
        publish_checked(store, writer, artifact, {artifact.entry: model.blob})
        writer.pin(str(reference), artifact)
    return artifact


def _artifact(model: OllamaModel) -> StoredArtifact:
    title = f"{model.reference.model}-{model.reference.tag}"
    file = StoredFile(path=f"{title}.gguf", sha256=model.sha256, size_bytes=model.size_bytes)
    return StoredArtifact(
        name=f"{model.reference}@{model.sha256[:12]}",
        title=title,
        format="gguf",
        entry=file.path,
        files=(file,),
        sha256=file.sha256,
        lineage=f"{model.reference}, used in place from Ollama's store",
        licence=model.licence,
        source=str(model.blob),
        place=str(model.blob.parent),
        recommended=model.recommended,
        notes=model.notes,
    )


def read_model(reference: OllamaReference, stores: Sequence[Path]) -> OllamaModel:
    """Raises UsageError with the names that exist, ModelRefused for what cannot be served."""
    known = {name: path for root in reversed(stores) for name, path in _manifests(root).items()}
    manifest = known.get(reference)
    if manifest is None:
        raise _unknown(reference, known, stores)
    layers = _layers(read_json_object(manifest, limit_bytes=MAX_TEXT_BYTES), reference)
    blobs = manifest.parents[4] / "blobs"
    for kind, reason in _REFUSED.items():
        if kind in layers:
            raise ModelRefused(f"{reference} is refused: {reason}", hint="name the .gguf file of a plain text model")
    weights = layers.get("model", [])
    if len(weights) != 1:
        raise ModelRefused(
            f"{reference} has {len(weights)} files of weights; expected one",
            hint="it may run in Ollama's cloud, or in parts: name the .gguf file of a plain text model",
        )
    licences = [_text(blobs, layer) for layer in layers.get("license", [])]
    recommended, notes = _parameters(blobs, layers)
    return OllamaModel(
        reference=reference,
        blob=_blob(blobs, weights[0], reference),
        sha256=weights[0].sha256,
        size_bytes=weights[0].size_bytes,
        licence=_first_line(licences[0]) if licences else UNKNOWN,
        recommended=recommended,
        notes=notes,
    )


def _manifests(root: Path) -> dict[OllamaReference, Path]:
    """Every manifest of a store by the name that people type; names of other registries are left out."""
    found: dict[OllamaReference, Path] = {}
    for path in sorted((root / "manifests").glob("*/*/*/*"))[:MAX_MANIFESTS]:
        _, namespace, model, tag = path.parts[-4:]
        if path.is_file() and not path.name.startswith("."):
            found.setdefault(OllamaReference(model, tag, namespace), path)
    return found


def _layers(manifest: JsonObject, reference: OllamaReference) -> dict[str, list[_Layer]]:
    listed = manifest.get("layers")
    layers: dict[str, list[_Layer]] = {}
    for item in listed if is_array(listed) else []:
        value = item if is_object(item) else {}
        kind, size = _KIND.match(str(value.get("mediaType"))), value.get("size")
        digest = _DIGEST.fullmatch(str(value.get("digest")))
        if not kind or not digest or not isinstance(size, int) or size < 0:
            raise ModelRefused(
                f"{reference}: its manifest has a layer that is not understood: {printable(str(value), 200)}",
                hint="pull the model again with Ollama, or name its .gguf file",
            )
        layers.setdefault(kind[1], []).append(_Layer(kind[1], digest[1], size))
    return layers


def _blob(blobs: Path, layer: _Layer, reference: OllamaReference) -> Path:
    path = blobs / f"sha256-{layer.sha256}"
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise FetchFailed(
            f"{reference}: Ollama's store names {path}, which cannot be read: {error.strerror}",
            hint="pull the model again; a store of Ollama's service is readable for members of the group ollama",
        ) from error
    if size != layer.size_bytes:
        raise FetchFailed(
            f"{reference}: {path} has {size:,} bytes, not the {layer.size_bytes:,} of its manifest",
            hint="ollama may be fetching it at this moment; otherwise pull the model again",
        )
    return path


def _parameters(blobs: Path, layers: dict[str, list[_Layer]]) -> tuple[dict[str, float], tuple[str, ...]]:
    """What becomes a default of the engine, and what an operator should know is not applied."""
    recommended: dict[str, float] = {}
    notes: list[str] = []
    for layer in layers.get("params", []):
        path = blobs / f"sha256-{layer.sha256}"
        values = read_json_object(path, limit_bytes=MAX_TEXT_BYTES) if path.is_file() else {}
        for name, value in values.items():
            if name in _MAPPED and isinstance(value, int | float) and not isinstance(value, bool):
                recommended[_MAPPED[name]] = float(value)
            else:
                notes.append(f"Ollama's parameter {printable(name, 40)} is not applied: requests may set it")
    if "system" in layers:
        notes.append("Ollama's system prompt for this model is not applied: send it as a system message")
    if "template" in layers:
        notes.append("the chat template of the GGUF file is used, not Ollama's own")
    return recommended, tuple(notes)


def _text(blobs: Path, layer: _Layer) -> str:
    try:
        with (blobs / f"sha256-{layer.sha256}").open("rb") as file:
            return file.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""


def _first_line(text: str) -> str:
    return next((printable(line.strip(), 80) for line in text.splitlines() if line.strip()), UNKNOWN)


def _unknown(reference: OllamaReference, known: dict[OllamaReference, Path], stores: Sequence[Path]) -> UsageError:
    if not known:
        places = ", ".join(str(store) for store in stores)
        return UsageError(
            f"{reference}: no store of Ollama with models was found (looked in {places})",
            hint="set OLLAMA_MODELS to the folder that holds `blobs` and `manifests`, and check that you may read it",
        )
    tags = sorted(str(one) for one in known if (one.model, one.namespace) == (reference.model, reference.namespace))
    there = tags or sorted(str(one) for one in known)[:10]
    return UsageError(
        f"{reference} is not in Ollama's store", hint=f"there are: {', '.join(there)}; `ollama pull` brings others"
    )
