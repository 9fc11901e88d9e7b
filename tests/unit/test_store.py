"""The store: what is in it is whole, checked and named, or it is not in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from modelyard.clock import Clock
from modelyard.errors import FetchFailed, ModelRefused, ModelyardError, StateLocked
from modelyard.models import hashing
from modelyard.models.hashing import FileHashes
from modelyard.models.store import KEPT_S, RESERVE_BYTES, Store
from modelyard.models.stored import StoredArtifact, StoredFile
from modelyard.state import StateDirectory

CONTENT = b"a model's bytes" * 100


def artifact(content: bytes = CONTENT, name: str = "tiny") -> StoredArtifact:
    file = StoredFile(path=f"{name}.gguf", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    return StoredArtifact(
        name=name,
        title=name,
        format="gguf",
        entry=file.path,
        files=(file,),
        sha256=file.sha256,
        lineage="fetched from a test",
        licence="Apache-2.0",
        source="a test",
        fetched_at=1000.0,
    )


@pytest.fixture
def store(state: StateDirectory) -> Store:
    return Store(state, Clock(wall=lambda: 1000.0))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def put(store: Store, content: bytes = CONTENT, name: str = "tiny") -> Path:
    with store.writing() as writer:
        return writer.put([content[:7], content[7:]], artifact(content, name))


def test_what_was_put_is_found_under_its_name_and_its_hash(store: Store) -> None:
    path = put(store)
    assert path.read_bytes() == CONTENT
    assert path.name == "tiny.gguf"
    assert path.resolve() == store.blob_path(artifact().sha256).resolve()
    assert path.stat().st_mode & 0o777 == 0o400
    assert store.find("tiny") == artifact()
    assert store.stored() == [artifact()]
    assert store.find("other") is None
    store.verify(artifact())


def test_a_finished_file_is_adopted_by_renaming_it(store: Store) -> None:
    with store.writing() as writer:
        file = writer.partial_folder() / "fetched"
        file.write_bytes(CONTENT)
        inode = file.stat().st_ino
        path = writer.adopt(file, artifact())
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"y" + CONTENT[1:]])
def test_bytes_that_are_not_what_was_promised_leave_nothing(store: Store, content: bytes) -> None:
    with store.writing() as writer, pytest.raises(FetchFailed, match="expected"):
        writer.put([content], artifact())
    assert store.find("tiny") is None
    assert files_below(store.root) == ["lock"]


def test_an_interruption_leaves_nothing(store: Store) -> None:
    def interrupted() -> Iterator[bytes]:
        yield CONTENT[:100]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.writing() as writer:
        writer.put(interrupted(), artifact())
    assert files_below(store.root) == ["lock"]


def test_what_a_dead_process_left_is_removed_by_the_next_writer(store: Store) -> None:
    leftover = store.root / "partial" / "dead" / "cache" / "half"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    with store.writing():
        assert not leftover.exists()


def test_one_writer_at_a_time(store: Store, state: StateDirectory) -> None:
    with store.writing(), pytest.raises(StateLocked, match="fetching a model"), Store(state).writing():
        pass
    with Store(state).writing():
        pass


def test_bytes_that_were_stored_but_never_named_are_rescued(store: Store) -> None:
    blob = store.blob_path(artifact().sha256)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    with store.writing() as writer:
        assert writer.rescue(artifact())
        assert writer.rescue(artifact(b"never stored", "other")) is None
    assert store.find("tiny") == artifact()


def test_damaged_bytes_are_not_rescued(store: Store) -> None:
    blob = store.blob_path(artifact().sha256)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"z" + CONTENT[1:])
    with store.writing() as writer:
        assert writer.rescue(artifact()) is None


def test_bytes_that_changed_afterwards_are_neither_found_nor_verified(store: Store) -> None:
    path = put(store)
    path.chmod(0o600)
    path.write_bytes(b"z" + CONTENT[1:])
    assert store.find("tiny") is None
    with pytest.raises(FetchFailed, match="SHA-256"):
        store.verify(artifact())


def test_a_damaged_record_counts_as_absent(store: Store) -> None:
    put(store)
    (store.root / "artifacts" / "tiny" / "artifact.json").write_text("{")
    assert store.find("tiny") is None
    assert store.stored() == []


def test_garbage_is_what_no_artifact_names(store: Store) -> None:
    put(store)
    put(store, b"another model", "other")
    with store.writing() as writer:
        assert writer.garbage() == 0
        writer.remove("other")
        assert writer.garbage() == len(b"another model")
    assert store.find("other") is None
    assert store.find("tiny") == artifact()


def test_an_interrupted_fetch_waits_a_week_for_the_next_one_and_then_gives_its_space_back(
    state: StateDirectory,
) -> None:
    store = Store(state)
    with store.writing() as writer:
        unfinished = writer.incoming("sha256-abc")
        unfinished.write_bytes(b"half")
        assert writer.garbage(older_than_s=KEPT_S) == 0
        assert writer.garbage(keep=[unfinished]) == 0
    later = Store(state, Clock(wall=lambda: time.time() + KEPT_S + 60))
    with later.writing() as writer:
        assert unfinished.exists(), "opening the store does not end its wait"
        assert writer.garbage(older_than_s=KEPT_S) == len(b"half")
    assert not unfinished.exists()


def test_a_name_of_any_kind_becomes_a_folder_inside_the_store(store: Store) -> None:
    for name in ("tiny", "hf://a/b@c:d", "../../etc", "/", "", "x" * 300, "\udcff"):
        assert store.folder(name).parent == store.root / "artifacts"
        assert store.folder(name).name not in ("", ".", "..")


def test_a_refused_artifact_leaves_only_bytes_that_others_name(store: Store) -> None:
    put(store)
    mine = artifact(b"refused", "other")
    both = msgspec.structs.replace(mine, files=(*mine.files, *artifact().files))
    with store.writing() as writer:
        writer.keep_chunks([b"refused"], mine.files[0], "other")
        writer.link(both)
        writer.discard(both)
    assert store.find("tiny") == artifact()
    assert not store.blob_path(mine.files[0].sha256).exists()


def test_a_pin_goes_with_what_it_names(store: Store) -> None:
    put(store)
    with store.writing() as writer:
        writer.pin("some://where", artifact())
    assert store.pinned("some://where") == artifact()
    assert store.pinned("some://where/else") is None
    with store.writing() as writer:
        writer.remove("tiny")
    assert store.pins() == [] and store.pinned("some://where") is None


def test_the_whole_store_can_be_moved(store: Store, tmp_path: Path) -> None:
    put(store)
    moved = StateDirectory(tmp_path / "elsewhere")
    shutil.move(store.root.parent, moved.root)
    assert Store(moved).find("tiny") == artifact()


def test_a_full_disk_is_refused_before_fetching_with_both_numbers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=RESERVE_BYTES + 999))
    with store.writing() as writer:
        writer.require_space(999)
        with pytest.raises(ModelyardError) as caught:
            writer.require_space(1000)
    assert f"{RESERVE_BYTES + 1000:,} bytes needed" in caught.value.message
    assert f"{RESERVE_BYTES + 999:,} available" in caught.value.message
    assert "MODELYARD_STATE" in caught.value.hint


# --- remembered hashes


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is really read to be hashed."""
    seen: list[Path] = []
    original: Callable[..., str] = hashing.sha256_of_file

    def counting(path: Path, *rest: object) -> str:
        seen.append(path)
        return original(path, *rest)

    monkeypatch.setattr(hashing, "sha256_of_file", counting)
    return seen


def test_an_unchanged_file_is_hashed_once(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    for _ in range(3):
        assert FileHashes(tmp_path / "hashes").of_file(file) == artifact().sha256
    assert reads == [file]


def test_a_stored_model_is_not_read_again_at_the_next_start(store: Store, reads: list[Path]) -> None:
    put(store)
    assert store.find("tiny")
    assert reads == []


def test_a_file_changed_behind_its_own_times_is_hashed_again(tmp_path: Path) -> None:
    """Same size, same modification time, same inode: the change time gives it away."""
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    hashes = FileHashes(tmp_path / "hashes")
    first = hashes.of_file(file)
    times = file.stat()
    file.write_bytes(b"z" + CONTENT[1:])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hashes.of_file(file) != first


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)

    def meddle(step: str, done: int, total: int | None) -> None:
        file.write_bytes(CONTENT + b"x")

    with pytest.raises(ModelRefused, match="changed while"):
        FileHashes(tmp_path / "hashes").of_file(file, meddle)


def test_the_hash_of_a_folder_covers_names_and_content(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"2")
    files = [folder / "b", folder / "a"]
    first = hashes.of_folder(folder, files)
    assert hashes.of_folder(folder, list(reversed(files))) == first
    (folder / "b").write_bytes(b"3")
    second = hashes.of_folder(folder, files)
    (folder / "b").rename(folder / "c")
    assert len({first, second, hashes.of_folder(folder, [folder / "a", folder / "c"])}) == 3


def test_a_remembered_hash_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    (tmp_path / "hashes").write_text("a file where the folder should be")
    assert FileHashes(tmp_path / "hashes").of_file(file) == artifact().sha256
