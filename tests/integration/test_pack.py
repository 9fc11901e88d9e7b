"""Packs: a deployment with its weights from one machine to another, every byte checked, nothing beyond its place."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_fetch import build_wheel, settings_for

from hubs import Hub, serving
from modelyard.cli.packing import Chosen, Packing
from modelyard.cli.unpacking import Unpacked, Unpacking
from modelyard.errors import EnvironmentFailed, FetchFailed, ModelyardError, UsageError
from modelyard.models.hashing import no_progress
from modelyard.models.pack import Pack, PackedEngine, PackedFile, open_pack
from modelyard.models.pack_writing import write_pack
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.models.wheel_files import fetch_wheels
from modelyard.records.base import encode
from modelyard.settings import Settings, load
from modelyard.spec.deployment import load as load_file
from modelyard.spec.rewriting import with_models
from modelyard.state import StateDirectory, open_state

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from models_on_disk import folder, gguf_of

CONTENT = gguf_of(200_000)
REPOSITORY = "someone/Tiny-Chat"
DEPLOYMENTS = """\
# Kept as its author wrote it.
apiVersion: modelyard/v1
deployments:
  - name: first   # the first
    model: "./my model.gguf"
  - {name: second, model: ./my model.gguf, limits: {context_tokens: 256}}
  - name: third
    model: hf://someone/Tiny-Chat
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as made:
        made.add(REPOSITORY, folder(20_000, shards=2))
        yield made


@pytest.fixture
def settings(tmp_path: Path, hub: Hub) -> Settings:
    return load({"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "PATH": os.environ["PATH"]})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "my model.gguf").write_bytes(CONTENT)
    path = tmp_path / "modelyard.yaml"
    path.write_text(DEPLOYMENTS)
    return path


@pytest.fixture
def there(tmp_path: Path) -> Iterator[StateDirectory]:
    """The other machine."""
    made = open_state(tmp_path / "there")
    yield made
    shutil.rmtree(made.sockets, ignore_errors=True)


OFFLINE = load({"HOME": "/nonexistent", "MODELYARD_OFFLINE": "1"})


def pack(file: Path, state: StateDirectory, settings: Settings, out: Path) -> str:
    """Packed for the engine without packages; planning is not what this is about."""
    chosen = [Chosen(one, resolve(one.model, state, settings), "fake") for one in load_file(file)]
    return Packing(Store(state), settings, no_progress).run(chosen, file, out)[1]


def unpack(path: Path, there: StateDirectory, into: Path) -> Unpacked:
    with open_pack(path) as opened:
        return Unpacking(there, OFFLINE, no_progress).run(opened, into)


@pytest.mark.parametrize("name", ["packed.tar", "packed"])
def test_what_was_packed_is_found_on_a_machine_without_a_network(
    state: StateDirectory, settings: Settings, file: Path, there: StateDirectory, tmp_path: Path, name: str
) -> None:
    digest = pack(file, state, settings, tmp_path / name)
    done = unpack(tmp_path / name, there, tmp_path / "there.yaml")
    assert done.sha256 == digest
    first, second, third = load_file(tmp_path / "there.yaml")
    assert first.model == second.model and first.model.startswith("store://my model-")
    assert (second.limits.context_tokens, third.model) == (256, f"hf://{REPOSITORY}")
    for deployment, original in ((first, str(file.parent / "my model.gguf")), (third, f"hf://{REPOSITORY}")):
        here, over = resolve(original, state, settings), resolve(deployment.model, there, OFFLINE)
        assert over.sha256 == here.sha256
        assert over.path.startswith(str(there.store))
    for artifact in Store(there).stored():
        Store(there).verify(artifact)


def test_the_deployment_file_keeps_its_comments(
    state: StateDirectory, settings: Settings, file: Path, there: StateDirectory, tmp_path: Path
) -> None:
    pack(file, state, settings, tmp_path / "packed")
    lines = (tmp_path / "packed" / "modelyard.yaml").read_text().splitlines()
    assert lines[0] == "# Kept as its author wrote it."
    assert lines[3] == "  - name: first   # the first"
    assert lines[-1] == "    model: hf://someone/Tiny-Chat", "what need not change is as it was"


def test_a_pack_holds_each_content_once(state: StateDirectory, settings: Settings, file: Path, tmp_path: Path) -> None:
    pack(file, state, settings, tmp_path / "packed")
    blobs = [path.name for path in (tmp_path / "packed" / "blobs").iterdir()]
    assert len(blobs) == len(folder(1, shards=2)) + 1
    assert all(
        hashlib.sha256((tmp_path / "packed" / "blobs" / name).read_bytes()).hexdigest() == name for name in blobs
    )


def test_the_same_content_makes_the_same_pack(
    state: StateDirectory, settings: Settings, file: Path, tmp_path: Path
) -> None:
    assert pack(file, state, settings, tmp_path / "a.tar") == pack(file, state, settings, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_weights_used_in_place_are_packed_whole(
    state: StateDirectory, file: Path, there: StateDirectory, tmp_path: Path, hub: Hub
) -> None:
    from test_hub import cached

    files = folder(20_000, shards=2)
    cached(tmp_path / "cache", REPOSITORY, hub.branches[REPOSITORY, "main"], files)
    settings = load({"HOME": "/nonexistent", "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")})
    assert Store(state).stored() == []
    pack(file, state, settings, tmp_path / "packed.tar")
    assert [one.place for one in Store(state).stored()] == [str(tmp_path / "cache/models--someone--Tiny-Chat/blobs")]
    unpack(tmp_path / "packed.tar", there, tmp_path / "there.yaml")
    artifact = resolve(f"hf://{REPOSITORY}", there, OFFLINE)
    assert {path.name: path.read_bytes() for path in Path(artifact.path).iterdir()} == files


def test_another_file_of_that_name_is_not_overwritten(
    state: StateDirectory, settings: Settings, file: Path, there: StateDirectory, tmp_path: Path
) -> None:
    pack(file, state, settings, tmp_path / "packed.tar")
    with pytest.raises(UsageError, match="is there already, and is another one"):
        unpack(tmp_path / "packed.tar", there, file)
    assert Store(there).stored() == []
    with pytest.raises(UsageError, match="is there already"):
        pack(file, state, settings, tmp_path / "packed.tar")


def test_unpacking_twice_is_as_good_as_once(
    state: StateDirectory, settings: Settings, file: Path, there: StateDirectory, tmp_path: Path
) -> None:
    pack(file, state, settings, tmp_path / "packed.tar")
    first = unpack(tmp_path / "packed.tar", there, tmp_path / "there.yaml")
    assert unpack(tmp_path / "packed.tar", there, tmp_path / "there.yaml") == first


def test_a_source_that_changes_while_it_is_packed_leaves_no_pack(
    state: StateDirectory, settings: Settings, file: Path, tmp_path: Path
) -> None:
    chosen = [Chosen(one, resolve(one.model, state, settings), "fake") for one in load_file(file)]
    shard = (Path(chosen[2].artifact.path) / "model-00001-of-00002.safetensors").resolve()
    shard.chmod(0o600)

    def meddle(step: str, done: int, total: int | None) -> None:
        if step == "pack":
            shard.write_bytes(b"half")

    with pytest.raises(FetchFailed, match="changed while it was packed"):
        Packing(Store(state), settings, meddle).run(chosen, file, tmp_path / "packed.tar")
    assert not [path for path in tmp_path.iterdir() if "packed" in path.name]


def test_an_interrupted_packing_leaves_nothing(
    state: StateDirectory, settings: Settings, file: Path, tmp_path: Path
) -> None:
    def interrupt(step: str, done: int, total: int | None) -> None:
        if step == "pack" and done > 100_000:
            raise KeyboardInterrupt

    chosen = [Chosen(one, resolve(one.model, state, settings), "fake") for one in load_file(file)]
    for name in ("packed.tar", "packed"):
        with pytest.raises(KeyboardInterrupt):
            Packing(Store(state), settings, interrupt).run(chosen, file, tmp_path / name)
    assert not [path for path in tmp_path.iterdir() if "packed" in path.name]


# --- packs that are damaged, or were made to mislead


@pytest.fixture
def packed(state: StateDirectory, settings: Settings, file: Path, tmp_path: Path) -> Path:
    """A small one, as a folder that tests may damage."""
    file.write_text("apiVersion: modelyard/v1\nname: first\nmodel: ./my model.gguf\n")
    pack(file, state, settings, tmp_path / "packed")
    return tmp_path / "packed"


def as_tar(packed: Path, out: Path, change: Callable[[tarfile.TarFile], None] = lambda tar: None) -> Path:
    """The folder as a tar file, with whatever `change` adds at the end."""
    with tarfile.open(out, "w") as tar:
        for name in ["manifest.json", *(str(path.relative_to(packed)) for path in sorted(packed.rglob("*/*")))]:
            tar.add(packed / name, name)
        tar.add(packed / "modelyard.yaml", "modelyard.yaml")
        change(tar)
    return out


def nothing_in(there: StateDirectory) -> bool:
    store = Store(there)
    return store.stored() == [] and store.pins() == [] and not there.wheels.exists()


def test_a_tar_file_made_by_hand_is_as_good(packed: Path, there: StateDirectory, tmp_path: Path) -> None:
    unpack(as_tar(packed, tmp_path / "by-hand.tar"), there, tmp_path / "there.yaml")
    assert len(Store(there).stored()) == 1


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("what", ["flipped", "shorter", "longer", "missing"])
def test_a_blob_that_is_not_what_it_should_be(
    packed: Path, there: StateDirectory, tmp_path: Path, what: str, form: str
) -> None:
    [blob] = (packed / "blobs").iterdir()
    changed = {"flipped": b"z" + CONTENT[1:], "shorter": CONTENT[:-1], "longer": CONTENT + b"x"}
    if what == "missing":
        blob.unlink()
    else:
        blob.write_bytes(changed[what])
    path = as_tar(packed, tmp_path / "damaged.tar") if form == "tar" else packed
    with pytest.raises(ModelyardError) as caught:
        unpack(path, there, tmp_path / "there.yaml")
    assert caught.value.hint
    assert nothing_in(there) and not (tmp_path / "there.yaml").exists()


def test_a_tar_file_that_is_cut_short(packed: Path, there: StateDirectory, tmp_path: Path) -> None:
    whole = as_tar(packed, tmp_path / "whole.tar").read_bytes()
    for part in range(1, 12):
        (tmp_path / "cut.tar").write_bytes(whole[: len(whole) * part // 13])
        with pytest.raises(ModelyardError):
            unpack(tmp_path / "cut.tar", there, tmp_path / "there.yaml")
        assert nothing_in(there)


def test_a_changed_manifest_has_another_hash(packed: Path, tmp_path: Path) -> None:
    with open_pack(packed) as opened:
        before = opened.sha256
    manifest = packed / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with open_pack(packed) as opened:
        assert opened.sha256 != before


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ESCAPES: dict[str, Callable[[tarfile.TarFile], None]] = {
    "a name that climbs": lambda tar: tar.addfile(tarfile.TarInfo("../../evil"), io.BytesIO()),
    "an absolute name": lambda tar: tar.addfile(tarfile.TarInfo("/tmp/evil"), io.BytesIO()),
    "a symbolic link": lambda tar: tar.addfile(link("blobs/x", "/etc/passwd", tarfile.SYMTYPE)),
    "a hard link": lambda tar: tar.addfile(link("blobs/x", "manifest.json", tarfile.LNKTYPE)),
    "a device": lambda tar: tar.addfile(link("blobs/x", "", tarfile.CHRTYPE)),
    "a pipe": lambda tar: tar.addfile(link("blobs/x", "", tarfile.FIFOTYPE)),
    "a folder": lambda tar: tar.addfile(link("blobs", "", tarfile.DIRTYPE)),
    "a file that the manifest does not name": lambda tar: tar.addfile(tarfile.TarInfo("more"), io.BytesIO()),
    "a second manifest": lambda tar: tar.addfile(tarfile.TarInfo("manifest.json"), io.BytesIO()),
}


@pytest.mark.parametrize("change", ESCAPES.values(), ids=ESCAPES)
def test_a_tar_file_that_holds(
    packed: Path, there: StateDirectory, tmp_path: Path, change: Callable[[tarfile.TarFile], None]
) -> None:
    with pytest.raises(FetchFailed, match="the pack holds"):
        unpack(as_tar(packed, tmp_path / "evil.tar", change), there, tmp_path / "there.yaml")
    assert nothing_in(there)


def test_a_link_in_a_folder_is_not_followed(packed: Path, there: StateDirectory, tmp_path: Path) -> None:
    [blob] = (packed / "blobs").iterdir()
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FetchFailed, match="cannot be read"):
        unpack(packed, there, tmp_path / "there.yaml")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_compressed_file_is_no_pack(packed: Path, there: StateDirectory, tmp_path: Path, mode: Any) -> None:
    with tarfile.open(tmp_path / "packed.tar", mode) as tar:
        tar.add(packed / "manifest.json", "manifest.json")
    with pytest.raises(UsageError, match="is no pack"):
        unpack(tmp_path / "packed.tar", there, tmp_path / "there.yaml")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(10240)])
def test_what_is_no_pack_is_said_to_be_none(there: StateDirectory, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "x.tar", tmp_path / "nobody.tar", tmp_path / "folder"):
        with pytest.raises(UsageError, match="no pack"):
            unpack(path, there, tmp_path / "there.yaml")


def manifest_of(packed: Path) -> Pack:
    return msgspec.json.decode((packed / "manifest.json").read_bytes(), type=Pack)


def with_artifact(pack: Pack, **changes: Any) -> Pack:
    [artifact] = pack.artifacts
    return msgspec.structs.replace(pack, artifacts=(msgspec.structs.replace(artifact, **changes),))


def with_path(pack: Pack, path: str) -> Pack:
    [artifact] = pack.artifacts
    return with_artifact(pack, files=(msgspec.structs.replace(artifact.files[0], path=path),))


UNSOUND: dict[str, Callable[[Pack], Pack]] = {
    "climbs": lambda pack: with_path(pack, "../../evil.gguf"),
    "is absolute": lambda pack: with_path(pack, "/evil.gguf"),
    "hides": lambda pack: with_path(pack, ".evil.gguf"),
    "is the record": lambda pack: with_artifact(with_path(pack, "artifact.json"), entry="artifact.json"),
    "is elsewhere": lambda pack: with_path(pack, "other.gguf"),
    "enters nothing": lambda pack: with_artifact(pack, entry=".."),
    "is used in place": lambda pack: with_artifact(pack, place="/etc"),
    "is of no known form": lambda pack: with_artifact(pack, format="pickle"),
    "has no files": lambda pack: with_artifact(pack, files=()),
    "is not inside": lambda pack: msgspec.structs.replace(pack, files=pack.files[1:]),
    "lies about its blob": lambda pack: msgspec.structs.replace(
        pack, files=(*pack.files, PackedFile(path=f"blobs/{'0' * 64}", sha256="1" * 64, size_bytes=1))
    ),
    "has a member that climbs": lambda pack: msgspec.structs.replace(
        pack, files=(*pack.files, PackedFile(path="wheels/../../x.whl", sha256="1" * 64, size_bytes=1))
    ),
    "names a file twice": lambda pack: msgspec.structs.replace(pack, files=(*pack.files, pack.files[0])),
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_a_manifest_whose_artifact(
    packed: Path, there: StateDirectory, tmp_path: Path, change: Callable[[Pack], Pack]
) -> None:
    (packed / "manifest.json").write_bytes(encode(change(manifest_of(packed))))
    with pytest.raises(FetchFailed, match="manifest is not sound"):
        unpack(packed, there, tmp_path / "there.yaml")
    assert nothing_in(there)


def test_a_pack_cannot_put_other_bytes_under_a_name_that_is_known(
    packed: Path, there: StateDirectory, tmp_path: Path, hub: Hub, settings: Settings
) -> None:
    resolve(f"hf://{REPOSITORY}", there, settings)
    [known] = Store(there).stored()
    changed = with_artifact(manifest_of(packed), name=known.name)
    (packed / "manifest.json").write_bytes(encode(changed))
    with pytest.raises(FetchFailed, match="in the store already, with other content"):
        unpack(packed, there, tmp_path / "there.yaml")
    assert Store(there).find(known.name) == known


def test_a_pack_passes_the_gate_like_anything_else(packed: Path, there: StateDirectory, tmp_path: Path) -> None:
    evil = b"\x80\x04 a pickle with the right hash"
    name = hashlib.sha256(evil).hexdigest()
    pack = manifest_of(packed)
    kept = tuple(file for file in pack.files if not file.path.startswith("blobs/"))
    files = (*kept, PackedFile(path=f"blobs/{name}", sha256=name, size_bytes=len(evil)))
    file = msgspec.structs.replace(pack.artifacts[0].files[0], sha256=name, size_bytes=len(evil))
    changed = with_artifact(msgspec.structs.replace(pack, files=files), files=(file,), sha256=name)
    (packed / "blobs" / name).write_bytes(evil)
    (packed / "manifest.json").write_bytes(encode(changed))
    with pytest.raises(ModelyardError, match="does not begin with GGUF"):
        unpack(packed, there, tmp_path / "there.yaml")
    assert Store(there).stored() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.9"}, "the pack's engines are for Python 3.9"),
        ({"machine": "riscv64"}, "riscv64; this is"),
        ({}, "does not install from the same packages"),
    ],
)
def test_a_pack_for_another_machine_or_version_is_refused_at_once(
    packed: Path, there: StateDirectory, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    engine = PackedEngine(name="openvino", version="1.0", build="cpu", lock_sha256="0" * 64)
    changed = msgspec.structs.replace(manifest_of(packed), engines=(engine,), **change)
    (packed / "manifest.json").write_bytes(encode(changed))
    with pytest.raises(UsageError, match=words):
        unpack(packed, there, tmp_path / "there.yaml")
    assert nothing_in(there)


def test_a_full_disk_is_told_before_anything_is_written(
    packed: Path, there: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ModelyardError, match="1,000 available"):
        unpack(packed, there, tmp_path / "there.yaml")
    manifest = manifest_of(packed)
    with pytest.raises(ModelyardError, match="1,000 available") as caught:
        write_pack(tmp_path / "more.tar", manifest, {}, no_progress)
    assert "--output" in caught.value.hint


# --- wheels


def test_wheels_come_as_files_and_without_what_they_depend_on(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "index")
    settings = settings_for(tmp_path, MODELYARD_FIND_LINKS=str(tmp_path / "index"), MODELYARD_OFFLINE="1")
    (tmp_path / "scratch").mkdir()
    lock = f"tiny-model==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    [found] = fetch_wheels(lock, 1000, tmp_path / "scratch", settings, no_progress)
    assert (found.name, found.read_bytes()) == (wheel.name, wheel.read_bytes())
    assert not (tmp_path / "index" / "it-ran").exists()


@pytest.mark.parametrize("there", [True, False], ids=["of other content", "nowhere"])
def test_a_wheel_that_is_not_the_locked_one_is_told_in_words(tmp_path: Path, there: bool) -> None:
    (tmp_path / "index").mkdir()
    if there:
        build_wheel(tmp_path / "index")
    settings = settings_for(tmp_path, MODELYARD_FIND_LINKS=str(tmp_path / "index"), MODELYARD_OFFLINE="1")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(EnvironmentFailed, match="wheels could not be fetched"):
        fetch_wheels(f"tiny-model==1.0 --hash=sha256:{'0' * 64}\n", 1000, tmp_path / "scratch", settings, no_progress)


def test_unpacked_wheels_are_an_index_of_their_own(tmp_path: Path) -> None:
    environ = {"HOME": "/nonexistent", "MODELYARD_STATE": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    assert load(environ).index.find_links == ()
    (tmp_path / "wheels").mkdir()
    assert load(environ).index.find_links == (str(tmp_path / "wheels"),)


# --- rewriting


def test_only_the_models_are_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("apiVersion: modelyard/v1\nmodel: 'ä.gguf' # ä\nname: x\nsettings: {model: y}\n")
    assert with_models(path, ["store://b"]) == (
        'apiVersion: modelyard/v1\nmodel: "store://b" # ä\nname: x\nsettings: {model: y}\n'
    )
