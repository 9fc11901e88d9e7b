"""Models from a hub: what is asked, what is kept, and what happens when the hub is slow, broken or lying."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hubs import Fault, Hub, git_sha1, serving, sha256
from modelyard.errors import FetchFailed, ModelRefused, ModelyardError, UsageError
from modelyard.models import store as store_module
from modelyard.models.hub import fetch_from_hub
from modelyard.models.references import parse_hub
from modelyard.models.sources import resolve
from modelyard.models.store import Store
from modelyard.models.stored import StoredArtifact
from modelyard.models.web import Patience
from modelyard.settings import Settings, load
from modelyard.state import StateDirectory, open_state
from needs import needs_program

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from models_on_disk import folder, gguf_of

HERE = Path(__file__).parent
REPOSITORY, GGUFS = "someone/Tiny-Chat", "someone/Tiny-Chat-GGUF"
QUICK = Patience(connect_s=5, stall_s=0.3, attempts=4, first_pause_s=0.001, longest_pause_s=0.01, longest_wait_s=2)
GGUF = gguf_of(100_000)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as made:
        made.add(REPOSITORY, folder(20_000))
        made.add(GGUFS, {"Tiny-Chat-Q8_0.gguf": GGUF, "Tiny-Chat-Q4_K_M.gguf": gguf_of(50_000), "README.md": b"# x"})
        yield made


def settings_for(hub: Hub, tmp_path: Path, **environ: str) -> Settings:
    base = {"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "PATH": os.environ["PATH"]}
    return load(base | environ)


@pytest.fixture
def settings(hub: Hub, tmp_path: Path) -> Settings:
    return settings_for(hub, tmp_path)


def fetch(reference: str, state: StateDirectory, settings: Settings, *, again: bool = False) -> StoredArtifact:
    store = Store(state)
    return fetch_from_hub(parse_hub(reference), store, settings, lambda *step: None, again=again, patience=QUICK)


def tree_bytes(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*") if not path.is_symlink() and path.is_file())


def assert_nothing(state: StateDirectory) -> None:
    """Neither a name, nor bytes that anybody could take for a model."""
    store = Store(state)
    assert store.stored() == [] and store.pins() == []
    assert not list((store.root / "blobs").rglob("*.safetensors"))
    assert not (store.root / "partial").exists()


# --- what is fetched


def test_a_quantisation_is_one_file_under_its_own_name(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    artifact = resolve(f"hf://{GGUFS}:Q8_0", state, settings)
    path = Path(artifact.path)
    assert (path.name, path.read_bytes()) == ("Tiny-Chat-Q8_0.gguf", GGUF)
    assert (artifact.format, artifact.sha256, artifact.size_bytes) == ("gguf", sha256(GGUF), len(GGUF))
    commit = hub.branches[GGUFS, "main"]
    assert artifact.lineage == f"fetched as hf://{GGUFS}@{commit}:Q8_0"
    assert [asked.target for asked in hub.asked if "resolve" in asked.target] == [
        f"/{GGUFS}/resolve/{commit}/Tiny-Chat-Q8_0.gguf"
    ]


def test_safetensors_come_with_their_configuration_and_without_pickles_or_code(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    unwanted = {
        "pytorch_model.bin": b"x",
        "modeling.py": b"x",
        "original/consolidated.pth": b"x",
        "onnx/model.onnx": b"x",
    }
    hub.add(REPOSITORY, folder(5000, shards=3) | unwanted)
    artifact = resolve(f"hf://{REPOSITORY}", state, settings)
    names = sorted(path.name for path in Path(artifact.path).iterdir())
    assert names == sorted(folder(1, shards=3))
    assert Path(artifact.path).name == "Tiny-Chat"
    assert artifact.format == "huggingface"
    copy = state.root / "copy" / "Tiny-Chat"
    shutil.copytree(artifact.path, copy)
    assert resolve(str(copy), state, settings).sha256 == artifact.sha256, "equal to the same files anywhere"


def test_what_was_fetched_is_not_asked_for_again_and_a_branch_stays_what_it_was(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    first = resolve(f"hf://{GGUFS}:Q8_0", state, settings)
    hub.add(GGUFS, {"Tiny-Chat-Q8_0.gguf": gguf_of(70_000)})
    hub.asked.clear()
    assert resolve(f"hf://{GGUFS}:Q8_0", state, settings) == first
    assert hub.asked == []
    moved = resolve(f"hf://{GGUFS}:Q8_0", state, settings, again=True)
    assert moved.sha256 != first.sha256
    assert Path(first.path).read_bytes() == GGUF, "what may be served at this moment stays"
    assert resolve(f"hf://{GGUFS}:Q8_0", state, settings) == moved


def test_a_revision_is_named_by_branch_tag_or_commit(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    old = hub.branches[GGUFS, "main"]
    hub.add(GGUFS, {"Tiny-Chat-Q8_0.gguf": gguf_of(70_000)}, revision="v2")
    assert resolve(f"hf://{GGUFS}@{old}:Q8_0", state, settings).sha256 == sha256(GGUF)
    assert resolve(f"hf://{GGUFS}@v2:Q8_0", state, settings).sha256 == sha256(gguf_of(70_000))
    with pytest.raises(FetchFailed, match="no revision 'v3'"):
        resolve(f"hf://{GGUFS}@v3:Q8_0", state, settings)


def test_large_files_come_from_another_host_that_is_shown_no_token(
    state: StateDirectory, tmp_path: Path, hub: Hub
) -> None:
    with serving() as cdn:
        hub.cdn, hub.token = cdn, "hf_secret"
        artifact = resolve(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path, HF_TOKEN="hf_secret"))
        assert artifact.sha256 == sha256(GGUF)
        assert {asked.token for asked in hub.asked} == {"hf_secret"}
        assert [asked.token for asked in cdn.asked] == [""]


def test_a_refusal_by_that_other_host_is_not_taken_for_the_hubs(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    with serving() as cdn:
        hub.cdn = cdn
        cdn.always[sha256(GGUF)] = Fault(status=403)
        with pytest.raises(FetchFailed, match=f"{cdn.url}, where {hub.url} keeps this file, refuses it") as caught:
            fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert "clock" in caught.value.hint


def test_a_server_that_goes_away_meanwhile_is_waited_for(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    """The second host answers once, breaks off, and is gone; who asks is told that only after having tried again."""
    with serving() as cdn:
        hub.cdn = cdn
        cdn.faults[sha256(GGUF)].append(Fault(cut_after=40_000))
        nobody = Fault(location="http://127.0.0.1:9/x")
        cdn.faults[sha256(GGUF)].extend([nobody, nobody])
        artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert Store(state).path_of(artifact).read_bytes() == GGUF


def test_a_redirect_that_comes_back_is_shown_no_token_either(state: StateDirectory, tmp_path: Path, hub: Hub) -> None:
    with serving() as elsewhere:
        hub.token = "hf_secret"
        hub.blobs["back"] = GGUF
        hub.always["Tiny-Chat-Q8_0.gguf"] = Fault(location=f"{elsewhere.url}/there")
        elsewhere.blobs["there"] = b""
        elsewhere.always["there"] = Fault(location=f"{hub.url}/back")
        resolve(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path, HF_TOKEN="hf_secret"))
        assert hub.of("/back")[0].token == "" and elsewhere.of("/there")[0].token == ""


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_what_is_no_web_server_is_refused(
    state: StateDirectory, settings: Settings, hub: Hub, location: str
) -> None:
    hub.always["Tiny-Chat-Q8_0.gguf"] = Fault(location=location)
    with pytest.raises(FetchFailed, match="redirects to"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)


def test_redirects_in_a_circle_come_to_an_end(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    hub.blobs["round"] = b""
    hub.always["Tiny-Chat-Q8_0.gguf"] = hub.always["round"] = Fault(location=f"{hub.url}/round")
    with pytest.raises(FetchFailed, match="more than 10 times"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)


def test_a_mirror_that_lists_names_alone_is_asked_for_each_hash(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    hub.names_only = True
    assert resolve(f"hf://{GGUFS}:Q8_0", state, settings).sha256 == sha256(GGUF)
    assert {asked.method for asked in hub.of("Tiny-Chat-Q8_0.gguf")} == {"HEAD", "GET"}


def test_progress_is_one_number_over_all_files(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    hub.add(REPOSITORY, folder(50_000, shards=4))
    told: list[tuple[int, int | None]] = []
    fetch_from_hub(
        parse_hub(f"hf://{REPOSITORY}"),
        Store(state),
        settings,
        lambda step, done, total: told.append((done, total)) if step == "fetch" else None,
        patience=QUICK,
    )
    weights = [(done, total) for done, total in told if total and total > 100_000]
    assert weights[-1][0] == weights[-1][1]
    assert all(done <= total for done, total in weights)


# --- what is refused, in words


def test_a_missing_quantisation_names_those_that_exist(state: StateDirectory, settings: Settings) -> None:
    with pytest.raises(UsageError) as caught:
        fetch(f"hf://{GGUFS}:Q5_K_M", state, settings)
    assert caught.value.message == f"{GGUFS} has no Q5_K_M: it has Q4_K_M, Q8_0"
    assert caught.value.hint == "say which: hf://org/name:Q4_K_M"
    assert_nothing(state)


def test_only_pickles_are_refused_before_anything_is_fetched(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    hub.add(REPOSITORY, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(ModelRefused, match=r"pytorch_model.bin only: it may be a pickle") as caught:
        fetch(f"hf://{REPOSITORY}", state, settings)
    assert "safetensors or GGUF conversion" in caught.value.hint
    assert not [asked for asked in hub.asked if "resolve" in asked.target]


def test_a_model_that_asks_for_its_own_code_is_refused_before_its_weights_are_fetched(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    config = json.dumps({"model_type": "x", "auto_map": {"AutoModel": "modeling.Evil"}}).encode()
    commit = hub.add(REPOSITORY, folder() | {"config.json": config})
    with pytest.raises(ModelRefused) as caught:
        fetch(f"hf://{REPOSITORY}", state, settings)
    assert caught.value.message.startswith(f"hf://{REPOSITORY}@{commit}: config.json is refused: its 'auto_map' asks")
    assert hub.of("model.safetensors") == []
    assert_nothing(state)
    assert tree_bytes(Store(state).root) < 5000


def test_a_broken_gguf_is_refused_under_the_name_of_its_source_and_its_bytes_go(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    hub.add(GGUFS, {"bad-Q8_0.gguf": GGUF[:-1000]})
    with pytest.raises(ModelRefused, match=r"bad-Q8_0\.gguf: .*expected an end within the file's"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert_nothing(state)
    assert tree_bytes(Store(state).root) < 5000


def test_a_pickle_called_gguf_is_refused(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    hub.add(GGUFS, {"evil-Q8_0.gguf": b"\x80\x04evil" * 100})
    with pytest.raises(ModelRefused, match="does not begin with GGUF"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert_nothing(state)


def test_a_gated_model_tells_a_newcomer_what_to_do(state: StateDirectory, tmp_path: Path, hub: Hub) -> None:
    hub.token = "hf_right"
    hub.gated.add(GGUFS)
    with pytest.raises(FetchFailed) as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path))
    assert "is gated: its authors want their terms accepted first" in caught.value.message
    assert f"open {hub.url}/{GGUFS}" in caught.value.hint and "set HF_TOKEN" in caught.value.hint


def test_no_token_a_wrong_one_and_a_wrong_name_are_told_apart(state: StateDirectory, tmp_path: Path, hub: Hub) -> None:
    hub.token = "hf_right"
    with pytest.raises(FetchFailed, match=f"knows no model {GGUFS}, or it is private") as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path))
    assert "set HF_TOKEN" in caught.value.hint
    with pytest.raises(FetchFailed, match="does not accept the token that is set") as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path, HF_TOKEN="hf_wrong"))
    assert "hf_wrong" not in caught.value.message + caught.value.hint
    with pytest.raises(FetchFailed, match="knows no model someone/Else") as caught:
        fetch("hf://someone/Else:Q8_0", state, settings_for(hub, tmp_path, HF_TOKEN="hf_right"))
    assert "spelling" in caught.value.hint


def test_the_token_is_read_from_the_file_that_the_hubs_own_client_writes(
    state: StateDirectory, tmp_path: Path, hub: Hub
) -> None:
    hub.token = "hf_right"
    file = tmp_path / "home" / ".cache" / "huggingface" / "token"
    file.parent.mkdir(parents=True)
    file.write_text("hf_right\n")
    assert fetch(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path))
    assert {asked.token for asked in hub.asked} == {"hf_right"}


def test_a_token_is_shown_to_nobody_who_may_not_know_it(state: StateDirectory, tmp_path: Path, hub: Hub) -> None:
    settings = settings_for(hub, tmp_path, HF_TOKEN="hf_secret")
    assert "HF_TOKEN" not in settings.environ, "no child inherits it"
    assert "hf_secret" not in repr(settings)
    fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    for path in state.root.rglob("*"):
        assert path.is_dir() or b"hf_secret" not in path.read_bytes(), path


def test_an_organisation_without_a_name_is_guessed(state: StateDirectory, settings: Settings) -> None:
    with pytest.raises(UsageError, match="has no organisation"):
        resolve("hf://gpt2", state, settings)
    with pytest.raises(UsageError) as caught:
        resolve("Qwen/Qwen3-0.6B-GGUF", state, settings)
    assert "did you mean hf://Qwen/Qwen3-0.6B-GGUF?" in caught.value.hint


def test_nobody_there_is_told_in_words(state: StateDirectory, tmp_path: Path) -> None:
    settings = load({"HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(FetchFailed, match=r"http://127\.0\.0\.1:9 is out of reach") as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("variable", ["MODELYARD_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_and_what_is_here_is_used(
    state: StateDirectory, tmp_path: Path, hub: Hub, variable: str
) -> None:
    offline = settings_for(hub, tmp_path, **{variable: "1"})
    with pytest.raises(FetchFailed, match="settings say offline"):
        fetch(f"hf://{GGUFS}:Q8_0", state, offline)
    assert hub.asked == []
    stored = fetch(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path))
    hub.asked.clear()
    assert fetch(f"hf://{GGUFS}:Q8_0", state, offline) == stored
    assert hub.asked == []


def test_something_that_is_no_hub_is_said_to_be_none(state: StateDirectory, settings: Settings, hub: Hub) -> None:
    hub.always["listing"] = Fault(status=200, instead=b"<html>Please log in</html>")
    with pytest.raises(FetchFailed, match="not proper JSON") as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("name", ["../../evil.gguf", "/etc/evil.gguf", "a/../b.gguf", "a\x1b.gguf", "a\\b.gguf"])
def test_names_that_lead_elsewhere_are_not_files_of_a_model(
    state: StateDirectory, settings: Settings, hub: Hub, name: str
) -> None:
    hub.add(GGUFS, {name: GGUF})
    with pytest.raises(ModelRefused, match="neither safetensors nor GGUF"):
        fetch(f"hf://{GGUFS}", state, settings)


def test_a_full_disk_is_told_before_anything_is_fetched(
    state: StateDirectory, settings: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ModelyardError, match="1,000 available"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert not [asked for asked in hub.asked if "resolve" in asked.target]


def test_a_disk_that_fills_up_meanwhile_is_told_as_such(
    state: StateDirectory, settings: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelyard.models import download

    class Full(download.FileIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "FileIO", Full)
    real = shutil.disk_usage
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=real("/").free))
    with pytest.raises(ModelyardError, match="cannot be written: No space left"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)


# --- the way there


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_used_unless_the_host_needs_none(state: StateDirectory, tmp_path: Path, hub: Hub, name: str) -> None:
    environ = {"HOME": str(tmp_path), "HF_ENDPOINT": "http://hub.invalid", name: hub.url}
    with pytest.raises(FetchFailed, match=r"hub\.invalid is out of reach"):
        fetch(f"hf://{GGUFS}:Q8_0", state, load(environ | {"NO_PROXY": "localhost,.invalid"}))
    assert hub.asked == []
    assert fetch(f"hf://{GGUFS}:Q8_0", state, load(environ)).sha256 == sha256(GGUF)
    assert {asked.target.partition("/api")[0].partition("/someone")[0] for asked in hub.asked} == {"http://hub.invalid"}


def test_a_proxy_that_is_not_there_is_named(state: StateDirectory, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": "http://127.0.0.1:9"}
    with pytest.raises(FetchFailed, match="the proxy towards") as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, load(environ))
    assert "HTTPS_PROXY" in caught.value.hint


def test_a_certificate_of_ones_own_is_trusted_when_it_is_named(state: StateDirectory, tmp_path: Path) -> None:
    openssl = needs_program("openssl")
    pem = tmp_path / "both.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*made, "-keyout", f"{pem}.key", "-out", f"{pem}.crt"], check=True, capture_output=True)
    pem.write_bytes(Path(f"{pem}.key").read_bytes() + Path(f"{pem}.crt").read_bytes())
    with serving(certificate=pem) as hub:
        hub.add(GGUFS, {"Tiny-Chat-Q8_0.gguf": GGUF})
        environ = {"HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
        with pytest.raises(FetchFailed, match="certificate that this machine does not trust") as caught:
            fetch(f"hf://{GGUFS}:Q8_0", state, load(environ))
        assert "MODELYARD_CA_FILE" in caught.value.hint
        with pytest.raises(FetchFailed, match="the CA file /nonexistent cannot be used"):
            fetch(f"hf://{GGUFS}:Q8_0", state, load(environ | {"MODELYARD_CA_FILE": "/nonexistent"}))
        trusted = load(environ | {"MODELYARD_CA_FILE": f"{pem}.crt"})
        assert fetch(f"hf://{GGUFS}:Q8_0", state, trusted).sha256 == sha256(GGUF)


# --- servers that break, and servers that lie


FILE = "Tiny-Chat-Q8_0.gguf"

RECOVERS = {
    "the connection is cut again and again": [Fault(cut_after=10_000), Fault(cut_after=30_000), Fault(cut_after=1)],
    "it closes early though it announced more": [Fault(cut_after=50_000)],
    "it stalls": [Fault(stall_after=20_000)],
    "it does not say the length, and closes early": [Fault(cut_after=60_000, no_length=True)],
    "it does not say the length": [Fault(no_length=True)],
    "it passes over that a range was asked for": [Fault(cut_after=40_000), Fault(ignore_range=True)],
    "it answers another range": [Fault(cut_after=40_000), Fault(range_from=39_000)],
    "it is overloaded": [Fault(status=503, headers={"Retry-After": "0"}), Fault(status=502), Fault(status=429)],
    "it stops at once": [Fault(cut_after=0), Fault(cut_after=0)],
}


@pytest.mark.parametrize("faults", RECOVERS.values(), ids=RECOVERS)
def test_a_fetch_goes_on_when(state: StateDirectory, settings: Settings, hub: Hub, faults: list[Fault]) -> None:
    hub.faults[FILE].extend(faults)
    artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert Store(state).path_of(artifact).read_bytes() == GGUF
    whole = (faults[-1].no_length and faults[-1].cut_after is None) or faults[-1].ignore_range
    assert len(hub.of(FILE)) == len(faults) + (0 if whole else 1)
    assert not list((Store(state).root / "incoming").iterdir())


REFUSED = {
    "other bytes of the same length": (Fault(instead=bytes(len(GGUF))), "its SHA-256 is"),
    "more bytes than were promised": (Fault(extra=b"x" * 5000, no_length=True), "more than .* bytes arrived"),
    "another length": (Fault(length=len(GGUF) + 7), "announces .* expected"),
    "a login page in its place": (Fault(instead=b"<html>log in</html>"), "announces 19 bytes"),
    "a compressed answer that was not asked for": (Fault(encoding="gzip"), "compressed"),
    "forbidden": (Fault(status=403), "is gated"),
    "gone": (Fault(status=410), "refuses .* with status 410"),
    "never more than a little": (Fault(cut_after=0), "4 attempts in a row brought nothing"),
    "always overloaded": (Fault(status=503), "answers 503; 4 attempts"),
    "overloaded for an hour": (Fault(status=429, headers={"Retry-After": "3600"}), "asks to wait 3600 s"),
}


@pytest.mark.parametrize(("fault", "words"), REFUSED.values(), ids=REFUSED)
def test_a_fetch_ends_with_the_reason_when_the_answer_is(
    state: StateDirectory, settings: Settings, hub: Hub, fault: Fault, words: str
) -> None:
    hub.always[FILE] = fault
    with pytest.raises(FetchFailed, match=words) as caught:
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert caught.value.hint
    assert_nothing(state)
    hub.always.clear()
    assert fetch(f"hf://{GGUFS}:Q8_0", state, settings).sha256 == sha256(GGUF)


def test_content_that_changes_between_two_attempts_is_never_joined(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    other = bytes(reversed(GGUF))
    hub.faults[FILE].extend([Fault(cut_after=40_000, instead=other)])
    artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert Store(state).path_of(artifact).read_bytes() == GGUF


def test_what_an_earlier_fetch_left_of_other_content_costs_one_fetch_from_the_beginning(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    left = Store(state).root / "incoming" / f"sha256-{sha256(GGUF)}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"z" * 30_000)
    artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert Store(state).path_of(artifact).read_bytes() == GGUF
    assert [asked.headers.get("range") for asked in hub.of(FILE)] == ["bytes=30000-", None]


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_leftover_of_full_length_or_more_is_judged_by_its_hash(
    state: StateDirectory, settings: Settings, hub: Hub, surplus: int
) -> None:
    left = Store(state).root / "incoming" / f"sha256-{sha256(GGUF)}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(GGUF + bytes(surplus))
    artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert Store(state).path_of(artifact).read_bytes() == GGUF
    assert bool(hub.of(FILE)) is bool(surplus), "what is whole and right needs no server"


def test_a_hub_that_lists_another_hash_than_it_serves_is_refused(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    hub.lies[FILE] = {"lfs": {"sha256": "0" * 64, "size": len(GGUF)}}
    with pytest.raises(FetchFailed, match="is not what was promised: its SHA-256"):
        fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert_nothing(state)


def test_a_small_file_is_held_to_the_hash_that_git_gives_it(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    wrong = folder()["config.json"].replace(b"llama", b"evil!")
    hub.always["config.json"] = Fault(instead=wrong)
    with pytest.raises(FetchFailed, match=f"its git hash is {git_sha1(wrong)}"):
        fetch(f"hf://{REPOSITORY}", state, settings)
    assert_nothing(state)


def test_an_index_that_names_a_file_that_is_not_there_is_refused(
    state: StateDirectory, settings: Settings, hub: Hub
) -> None:
    files = folder(100, shards=2)
    del files["model-00002-of-00002.safetensors"]
    hub.add(REPOSITORY, files)
    with pytest.raises(ModelRefused, match="is not whole: its index names"):
        fetch(f"hf://{REPOSITORY}", state, settings)
    assert hub.of("model-00001-of-00002.safetensors") == []


# --- what Hugging Face's own client has fetched already


def cached(hub_cache: Path, repository: str, commit: str, files: dict[str, bytes]) -> Path:
    """A cache as huggingface_hub makes it."""
    root = hub_cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for path, content in files.items():
        name = sha256(content) if path.endswith((".gguf", ".safetensors")) else git_sha1(content)
        blob = root / "blobs" / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return root


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_weights_in_the_cache_are_used_in_place(state: StateDirectory, tmp_path: Path, hub: Hub, online: bool) -> None:
    files = folder(20_000) | {"pytorch_model.bin": b"a pickle that the other client fetched too"}
    commit = hub.add(REPOSITORY, files)
    root = cached(tmp_path / "cache", REPOSITORY, commit, files)
    environ = {"HF_HUB_CACHE": str(tmp_path / "cache")} | ({} if online else {"HF_HUB_OFFLINE": "1"})
    artifact = fetch(f"hf://{REPOSITORY}", state, settings_for(hub, tmp_path, **environ))
    path = Store(state).path_of(artifact)
    assert (path / "model.safetensors").resolve().parent == root / "blobs"
    assert not (path / "pytorch_model.bin").exists()
    assert "used in place from the Hugging Face cache" in artifact.lineage
    assert not [asked for asked in hub.asked if "resolve" in asked.target]
    assert tree_bytes(Store(state).root / "blobs") == 0
    assert resolve(str(path), state, settings_for(hub, tmp_path)).sha256 == artifact.sha256


def test_a_damaged_file_of_the_cache_is_fetched_and_left_as_it_is(
    state: StateDirectory, tmp_path: Path, hub: Hub
) -> None:
    root = cached(tmp_path / "cache", GGUFS, hub.branches[GGUFS, "main"], {FILE: GGUF})
    blob = root / "blobs" / sha256(GGUF)
    blob.write_bytes(b"z" + GGUF[1:])
    artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings_for(hub, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache")))
    assert Store(state).path_of(artifact).read_bytes() == GGUF
    assert artifact.place == "" and blob.read_bytes()[:1] == b"z"


def test_a_cache_that_loses_the_file_later_means_a_fetch(state: StateDirectory, tmp_path: Path, hub: Hub) -> None:
    root = cached(tmp_path / "cache", GGUFS, hub.branches[GGUFS, "main"], {FILE: GGUF})
    settings = settings_for(hub, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert fetch(f"hf://{GGUFS}:Q8_0", state, settings).place
    shutil.rmtree(root)
    again = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert not again.place and Store(state).path_of(again).read_bytes() == GGUF


def test_a_hub_out_of_reach_is_replaced_by_the_cache_with_a_note(state: StateDirectory, tmp_path: Path) -> None:
    commit = "a" * 40
    cached(tmp_path / "cache", GGUFS, commit, {FILE: GGUF})
    settings = load(
        {"HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "cache")}
    )
    artifact = fetch(f"hf://{GGUFS}:Q8_0", state, settings)
    assert artifact.name == f"hf://{GGUFS}@{commit}:Q8_0"
    assert "out of reach" in artifact.notes[0]


# --- interrupted again and again


def test_twenty_interrupted_fetches_leave_nothing_half_trusted_and_the_next_one_finishes(
    tmp_path: Path, hub: Hub
) -> None:
    """Killed or interrupted at random points of a fetch of several files, each after a connection that broke by
    itself; the seed is fixed."""
    seeded = random.Random(20)
    files = folder(400_000, shards=3)
    hub.add(REPOSITORY, files)
    whole = sum(len(content) for content in files.values())
    state, settings = open_state(tmp_path / "state"), settings_for(hub, tmp_path)
    store = Store(state)
    kinds = [signal.SIGKILL, signal.SIGINT] * 10
    for number, how in enumerate(kinds):
        name = seeded.choice([path for path in files if path.endswith(".safetensors")])
        hub.faults[name].append(Fault(cut_after=seeded.randrange(0, 60_000)))
        hub.sent, hub.stop_after = 0, seeded.randrange(1_000, whole // 15)
        hub.stopped.clear()
        child = start_fetch(state, settings)
        try:
            assert hub.stopped.wait(60), f"round {number}: the fetch did not get so far"
            child.send_signal(how)
            assert child.wait(30) != 0
        finally:
            child.kill()
            child.wait()
        assert store.stored() == [] and store.pins() == []
        for blob in (store.root / "blobs").rglob("*"):
            assert blob.is_dir() or hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert tree_bytes(store.root) <= whole + 50_000, "what waits for the next fetch is never more than the model"
        assert len(list((store.root / "incoming").iterdir())) <= len(files)
    hub.stop_after = None
    hub.faults.clear()
    resumed = [asked for asked in hub.asked if "range" in asked.headers]
    assert len(resumed) > 20, "interrupted fetches went on from where they were"
    artifact = fetch(f"hf://{REPOSITORY}", state, settings)
    assert {path.name: path.read_bytes() for path in store.path_of(artifact).iterdir()} == files
    store.verify(artifact)
    assert list((store.root / "incoming").iterdir()) == []
    assert not (store.root / "partial").exists()
    assert tree_bytes(store.root / "blobs") == whole


def start_fetch(state: StateDirectory, settings: Settings) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from pathlib import Path; from modelyard.models.sources import resolve\n"
        "from modelyard import settings; from modelyard.state import open_state\n"
        "resolve(sys.argv[1], open_state(Path(sys.argv[2])), settings.load())\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, f"hf://{REPOSITORY}", str(state.root)],
        env=dict(settings.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
