"""A hub-shaped server on loopback, and everything that can be wrong with one.

It speaks what huggingface_hub and its servers say to each other: the revision's listing with sizes and hashes, files
under `resolve`, redirects to a second host for large ones, ranges, and X-Error-Code for refusals."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

LARGE = (".gguf", ".safetensors")
PIECE = 4096


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer for a file. Bytes count from the beginning of the answer.

    `cut_after`: the connection is closed there. `stall_after`: nothing more comes until the client is gone. `status`,
    `headers`: an answer without the file. `length`: what Content-Length says instead. `no_length`: it is left out, and
    the end of the connection is the end. `extra`: bytes sent behind the file. `instead`: other content of whatever
    length. `ignore_range`, `range_from`: all is sent, or another range than was asked for. `encoding`: a
    Content-Encoding that was not asked for. `location`: a redirect."""

    cut_after: int | None = None
    stall_after: int | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    no_length: bool = False
    extra: bytes = b""
    instead: bytes | None = None
    ignore_range: bool = False
    range_from: int | None = None
    encoding: str = ""
    location: str = ""


@dataclass(frozen=True)
class Asked:
    method: str
    target: str
    headers: dict[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """One server. `repositories` maps org/name and commit to files; `branches` what a revision means."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = defaultdict(dict)
        self.branches: dict[tuple[str, str], str] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        self.asked: list[Asked] = []
        self.token = ""
        self.gated: set[str] = set()
        self.names_only = False
        self.lies: dict[str, dict[str, Any]] = {}
        self.cdn: Hub | None = None
        self.blobs: dict[str, bytes] = {}
        self.url = ""
        self.gone = threading.Event()
        # Answers stop here, over all of them together, until the client is gone.
        self.stop_after: int | None = None
        self.stopped = threading.Event()
        self.sent = 0
        self.lock = threading.Lock()

    def add(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """A commit with these files, which `revision` means from now on; its hash."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[repository][commit] = files
        self.branches[repository, revision] = commit
        self.branches[repository, commit] = commit
        return commit

    def of(self, path: str) -> list[Asked]:
        """The requests whose target ends so."""
        return [asked for asked in self.asked if asked.target.partition("?")[0].endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.command, self.path, headers))
        # Whoever takes us for a proxy sends the whole URL.
        target = unquote(re.sub(r"^http://[^/]+", "", self.path).partition("?")[0])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", target):
            self._listing(found[1], found[2])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", target):
            self._tree(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", target):
            self._resolve(found[1], found[2], found[3], with_body)
        elif found := re.fullmatch(r"/blobs/([^/]+)", target):
            self._file(found[1], self.hub.blobs[found[1]], {"ETag": f'"cdn-{found[1][:8]}"'}, with_body)
        elif target.removeprefix("/") in self.hub.blobs:
            name = target.removeprefix("/")
            self._file(name, self.hub.blobs[name], {}, with_body)
        else:
            self._plain(404, {"X-Error-Code": "EntryNotFound"})

    def _may(self, repository: str) -> bool:
        """Refuses as the hub does: who shows no token is not told whether a private repository exists."""
        hub = self.hub
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hub.token and shown and shown != hub.token:
            self._plain(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository not in hub.repositories or (hub.token and not shown and repository not in hub.gated):
            self._plain(401 if not shown else 404, {"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def _listing(self, repository: str, revision: str) -> None:
        hub = self.hub
        if (fault := self._fault("listing")) and fault.status:
            self._plain(fault.status, fault.headers, fault.instead or b"")
            return
        if not self._may(repository):
            return
        commit = hub.branches.get((repository, revision))
        if commit is None:
            self._plain(404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings: list[dict[str, Any]] = []
        for path, content in hub.repositories[repository][commit].items():
            sibling: dict[str, Any] = {"rfilename": path}
            if not hub.names_only:
                sibling |= {"size": len(content), "blobId": git_sha1(content)}
                if path.endswith(LARGE):
                    sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(sibling | hub.lies.get(path, {}))
        body = {"id": repository, "sha": commit, "siblings": siblings, "cardData": {"license": "apache-2.0"}}
        self._plain(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _tree(self, repository: str, revision: str) -> None:
        """What huggingface_hub itself lists files by; ours asks for them with the revision."""
        if not self._may(repository):
            return
        commit = self.hub.branches.get((repository, revision), "")
        entries: list[dict[str, Any]] = []
        for path, content in self.hub.repositories[repository].get(commit, {}).items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._plain(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

    def _resolve(self, repository: str, revision: str, path: str, with_body: bool) -> None:
        hub = self.hub
        if not self._may(repository):
            return
        if repository in hub.gated and self.headers.get("Authorization", "") != f"Bearer {hub.token}":
            self._plain(401, {"X-Error-Code": "GatedRepo"})
            return
        commit = hub.branches.get((repository, revision), "")
        content = hub.repositories[repository].get(commit, {}).get(path)
        if content is None:
            self._plain(404, {"X-Error-Code": "EntryNotFound"})
            return
        large = path.endswith(LARGE)
        etag = sha256(content) if large else git_sha1(content)
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"'}
        if large and hub.cdn is not None:
            hub.cdn.blobs[etag] = content
            self._plain(302, headers | {"Location": f"{hub.cdn.url}/blobs/{etag}?signature=secret"})
            return
        self._file(path, content, headers | {"ETag": f'"{etag}"'}, with_body)

    def _file(self, name: str, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        fault = self._fault(name) if with_body else Fault()
        if fault.location:
            self._plain(302, {"Location": fault.location})
            return
        if fault.status:
            self._plain(fault.status, fault.headers)
            return
        content = content if fault.instead is None else fault.instead
        begin, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fits = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if asked and fits and not fault.ignore_range:
            begin, status = (int(asked[1]) if fault.range_from is None else fault.range_from), 206
            if begin >= len(content):
                self._plain(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            headers = headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        body = content[begin:] + fault.extra
        self.send_response(status)
        for key, value in (headers | fault.headers).items():
            self.send_header(key, value)
        if fault.encoding:
            self.send_header("Content-Encoding", fault.encoding)
        if fault.no_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body) if fault.length is None else fault.length))
        self.end_headers()
        if with_body:
            self._send(body, fault)

    def _send(self, body: bytes, fault: Fault) -> None:
        hub = self.hub
        for at in range(0, len(body), PIECE):
            piece = body[at : at + PIECE]
            if fault.cut_after is not None and at + len(piece) > fault.cut_after:
                self.wfile.write(piece[: max(0, fault.cut_after - at)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if fault.stall_after is not None and at >= fault.stall_after:
                self._wait_until_gone()
                return
            with hub.lock:
                stop = hub.stop_after is not None and hub.sent + len(piece) > hub.stop_after
                hub.sent += 0 if stop else len(piece)
            if stop:
                self.wfile.flush()
                hub.stopped.set()
                self._wait_until_gone()
                return
            self.wfile.write(piece)
        self.wfile.flush()

    def _wait_until_gone(self) -> None:
        try:
            while self.connection.recv(1024):
                pass
        except OSError:
            pass
        self.close_connection = True
        self.hub.gone.set()

    def _fault(self, name: str) -> Fault:
        with self.hub.lock:
            waiting = self.hub.faults[name]
            return waiting.popleft() if waiting else self.hub.always.get(name, Fault())

    def _plain(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed leave broken pipes: that is what some tests are about."""


@contextmanager
def serving(hub: Hub | None = None, *, certificate: Path | None = None) -> Iterator[Hub]:
    """Over TLS where there is a `certificate`: a PEM file with its key."""
    hub = hub or Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            hub.url = hub.url.replace("http:", "https:")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
