"""Single files under URLs: web servers by our own client, object stores through fsspec; held to a hash, or pinned."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hubs import Fault, Hub, serving, sha256
from modelyard.errors import FetchFailed, ModelRefused, UsageError
from modelyard.models.objects import UNVERIFIED, fetch_object
from modelyard.models.references import parse_object
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.models.stored import StoredArtifact
from modelyard.models.web import Patience
from modelyard.settings import Settings, load
from modelyard.state import StateDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from models_on_disk import gguf_of

CONTENT = gguf_of(100_000)
HASH = sha256(CONTENT)
QUICK = Patience(connect_s=5, stall_s=0.3, attempts=4, first_pause_s=0.001, longest_pause_s=0.01)
SETTINGS: Settings = load({"HOME": "/nonexistent"})


def fetch(url: str, state: StateDirectory, *, again: bool = False, settings: Settings = SETTINGS) -> StoredArtifact:
    return fetch_object(parse_object(url), Store(state), settings, lambda *_: None, again=again, patience=QUICK)


@pytest.fixture
def web() -> Iterator[Hub]:
    with serving() as made:
        made.blobs["x.gguf"] = CONTENT
        yield made


def test_a_file_that_must_have_a_hash_is_fetched_and_kept_under_it(state: StateDirectory, web: Hub) -> None:
    artifact = fetch(f"{web.url}/x.gguf?sha256={HASH}", state)
    assert Store(state).path_of(artifact).read_bytes() == CONTENT
    assert (artifact.sha256, artifact.notes) == (HASH, ())
    web.asked.clear()
    assert fetch(f"{web.url}/x.gguf?sha256={HASH}", state) == artifact
    assert web.asked == []


def test_a_hash_file_beside_it_is_as_good(state: StateDirectory, web: Hub) -> None:
    web.blobs["x.gguf.sha256"] = f"{HASH.upper()}  x.gguf\n".encode()
    assert fetch(f"{web.url}/x.gguf", state).notes == ()
    web.blobs["x.gguf.sha256"] = b"0" * 64
    with pytest.raises(FetchFailed, match="is not what was promised"):
        fetch(f"{web.url}/x.gguf", state, again=True)


def test_without_a_hash_the_first_fetch_is_pinned_and_said_to_be_unverified(state: StateDirectory, web: Hub) -> None:
    artifact = resolve(f"{web.url}/x.gguf", state, SETTINGS)
    assert artifact.notes == (UNVERIFIED,)
    assert artifact.lineage == f"fetched from {web.url}/x.gguf, pinned at the first fetch"
    web.blobs["x.gguf"] = gguf_of(50_000)
    assert resolve(f"{web.url}/x.gguf", state, SETTINGS) == artifact, "the same reference stays the same bytes"
    assert resolve(f"{web.url}/x.gguf", state, SETTINGS, again=True).sha256 == sha256(gguf_of(50_000))


def test_other_content_than_the_hash_says_is_refused_and_nothing_is_kept(state: StateDirectory, web: Hub) -> None:
    with pytest.raises(FetchFailed, match="its SHA-256 is"):
        fetch(f"{web.url}/x.gguf?sha256={'0' * 64}", state)
    store = Store(state)
    assert store.stored() == [] and list((store.root / "incoming").iterdir()) == []


def test_a_cut_is_resumed_only_where_a_hash_will_judge(state: StateDirectory, web: Hub) -> None:
    web.faults["x.gguf"].extend([Fault(cut_after=40_000), Fault(status=404)])
    with pytest.raises(FetchFailed, match="is not there"):
        fetch(f"{web.url}/x.gguf?sha256={HASH}", state)
    fetch(f"{web.url}/x.gguf?sha256={HASH}", state)
    assert web.asked[-1].headers["range"] == "bytes=40000-"


def test_an_unverified_fetch_that_was_given_up_begins_anew(state: StateDirectory, web: Hub) -> None:
    web.faults["x.gguf"].extend([Fault(cut_after=40_000), Fault(status=404)])
    with pytest.raises(FetchFailed, match="is not there"):
        fetch(f"{web.url}/x.gguf", state)
    artifact = fetch(f"{web.url}/x.gguf", state)
    assert "range" not in web.asked[-1].headers
    assert Store(state).path_of(artifact).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "words"), [(Fault(status=403), "does not let us read"), (Fault(status=404), "is not there")]
)
def test_a_refusal_is_told_without_the_signature(state: StateDirectory, web: Hub, fault: Fault, words: str) -> None:
    web.always["x.gguf"] = fault
    with pytest.raises(FetchFailed, match=words) as caught:
        fetch(f"{web.url}/x.gguf?X-Signature=secret", state)
    assert "secret" not in caught.value.message + caught.value.hint


def test_what_is_no_gguf_is_refused_and_goes(state: StateDirectory, web: Hub) -> None:
    web.blobs["x.gguf"] = b"PK\x03\x04 an archive"
    with pytest.raises(ModelRefused, match="does not begin with GGUF"):
        fetch(f"{web.url}/x.gguf", state)
    assert not list((Store(state).root / "blobs").rglob("*" + sha256(web.blobs["x.gguf"])))


def test_offline_only_what_is_here_is_used(state: StateDirectory, web: Hub) -> None:
    offline = load({"HOME": "/nonexistent", "MODELYARD_OFFLINE": "1"})
    with pytest.raises(FetchFailed, match="settings say offline"):
        fetch(f"{web.url}/x.gguf", state, settings=offline)
    first = fetch(f"{web.url}/x.gguf", state)
    assert fetch(f"{web.url}/x.gguf", state, settings=offline) == first


# --- object stores


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/x.gguf", CONTENT)
    yield files
    files.rm("/bucket", recursive=True)


def test_an_object_store_is_read_through_fsspec(state: StateDirectory, memory: Any) -> None:
    progress: list[tuple[str, int, int | None]] = []
    reference = f"memory://bucket/x.gguf?sha256={HASH}"
    artifact = resolve(reference, state, SETTINGS, lambda *step: progress.append(step))
    assert Path(artifact.path).read_bytes() == CONTENT
    assert ("fetch", len(CONTENT), len(CONTENT)) in progress
    memory.pipe("/bucket/x.gguf", b"something else")
    assert resolve(reference, state, SETTINGS) == artifact


def test_an_object_store_too_may_hold_the_hash_beside_it(state: StateDirectory, memory: Any) -> None:
    memory.pipe("/bucket/x.gguf.sha256", HASH.encode())
    assert fetch("memory://bucket/x.gguf", state).notes == ()


def test_what_was_left_of_an_object_is_gone_on_from_and_judged(state: StateDirectory, memory: Any) -> None:
    left = Store(state).root / "incoming" / f"sha256-{HASH}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(CONTENT[:30_000])
    assert fetch(f"memory://bucket/x.gguf?sha256={HASH}", state).sha256 == HASH
    with pytest.raises(FetchFailed, match="is not what was promised"):
        fetch(f"memory://bucket/x.gguf?sha256={'1' * 64}", state)
    assert list((Store(state).root / "incoming").iterdir()) == []


def test_an_object_that_is_not_there_is_told_in_words(state: StateDirectory, memory: Any) -> None:
    with pytest.raises(FetchFailed, match=r"memory://bucket/y\.gguf is not there"):
        fetch("memory://bucket/y.gguf", state)


def test_a_missing_driver_is_named_with_the_command_that_brings_it(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match="s3:// needs packages that are not installed: s3fs") as caught:
        fetch("s3://bucket/x.gguf", state)
    assert "pip install 'modelyard[object-stores]' s3fs" in caught.value.hint


def test_without_fsspec_it_is_named_too(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "fsspec":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="not installed: fsspec gcsfs"):
        fetch("gs://bucket/x.gguf", state)


def test_a_scheme_that_nobody_knows_lists_those_that_are_known(state: StateDirectory) -> None:
    with pytest.raises(UsageError, match="nonsense:// is no kind of place") as caught:
        fetch("nonsense://bucket/x.gguf", state)
    assert "hf://, ollama://, https://" in caught.value.hint


# --- files of this machine under a URL


def test_a_file_url_is_the_file_where_it_lies(state: StateDirectory, tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(CONTENT)
    url = path.as_uri()
    assert resolve(url, state, SETTINGS).path == str(path)
    assert resolve(f"{url}?sha256={HASH}", state, SETTINGS).sha256 == HASH
    with pytest.raises(UsageError, match="has SHA-256"):
        resolve(f"{url}?sha256={'0' * 64}", state, SETTINGS)
    with pytest.raises(UsageError, match="another machine"):
        resolve("file://elsewhere/x.gguf", state, SETTINGS)
    with pytest.raises(UsageError, match="does not exist"):
        resolve("file:///nonexistent/x.gguf", state, SETTINGS)
