"""A package index on loopback, with wheels made on the spot: it counts what it hands out, and can stop half-way."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import random
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHUNK_BYTES = 1 << 15


def wheel(
    folder: Path, name: str, version: str = "1.0", code: str = "", payload_bytes: int = 0, requires: str = ""
) -> Path:
    """A wheel with one module called like it, and `payload_bytes` that do not compress beside it."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": code.encode(),
        f"{info}/METADATA": f"{metadata}Requires-Dist: {requires}\n".encode() if requires else metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if payload_bytes:
        files[f"{name}_data.bin"] = random.Random(f"{name} {version}").randbytes(payload_bytes)
    record = "".join(f"{path},sha256={_record_hash(data)},{len(data)}\n" for path, data in files.items())
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            # Always the same moment: the same wheel has the same hash.
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), data)
    return file


def lock_of(folder: Path, *pins: str) -> str:
    """A lock for packages of a folder, with the hash of every wheel that could be meant."""
    lines: list[str] = []
    for pin in pins:
        name, _, version = pin.partition("==")
        files = sorted(folder.glob(f"{name.replace('-', '_')}-{version}*.whl"))
        hashes = [f"--hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
        lines.append(" ".join([pin, *(hashes or [f"--hash=sha256:{'0' * 64}"])]))
    return "\n".join(lines) + "\n"


@dataclass
class Counted:
    """`asked` counts requests by file name, `whole` those that were answered to the end. `on_sign` is called before
    each piece that leaves; a wheel whose name is in `held` is given half, and the rest when `release` is set."""

    folder: Path
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter[str])
    whole: Counter[str] = field(default_factory=Counter[str])
    held: set[str] = field(default_factory=set[str])
    half_way: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    on_sign: Callable[[], None] = lambda: None
    credentials: str = ""


@contextlib.contextmanager
def serve(folder: Path, *, credentials: str = "") -> Generator[Counted]:
    """The wheels of `folder` as a simple index at `url`. With `credentials` (user:password), to nobody else."""
    counted = Counted(folder, credentials=credentials)
    server = _Server(("127.0.0.1", 0), _handler(counted))
    counted.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield counted
    finally:
        counted.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are what this is for."""


def _handler(counted: Counted) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            expected = "Basic " + base64.b64encode(counted.credentials.encode()).decode()
            if counted.credentials and self.headers["Authorization"] != expected:
                self._answer(401, b"", {"WWW-Authenticate": "Basic"})
                return
            kind, _, name = self.path.strip("/").partition("/")
            found = _page(counted.folder, name) if kind == "simple" else _file(counted.folder, name)
            counted.asked[name] += 1
            self._answer(200 if found is not None else 404, found or b"", {}, name)

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str], name: str = "") -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Type": "text/html", "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                for piece in _pieces(body):
                    counted.on_sign()
                    self.wfile.write(piece)
                    if name in counted.held:
                        self.wfile.flush()
                        counted.half_way.set()
                        counted.release.wait()
                counted.whole[name] += 1

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


def _pieces(body: bytes) -> Iterable[bytes]:
    return (body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES))


def _page(folder: Path, project: str) -> bytes | None:
    files = sorted(folder.glob(f"{project.strip('/').replace('-', '_')}-*.whl"))
    links = [
        f'<a href="/files/{file.name}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"'
        f' data-core-metadata="true">{file.name}</a>'
        for file in files
    ]
    return f"<!doctype html><html><body>{''.join(links)}</body></html>".encode() if links else None


def _file(folder: Path, name: str) -> bytes | None:
    """A wheel, or its metadata alone (PEP 658)."""
    file = folder / name.removesuffix(".metadata")
    if file.parent != folder or not file.is_file():
        return None
    if not name.endswith(".metadata"):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(path for path in archive.namelist() if path.endswith(".dist-info/METADATA")))


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
