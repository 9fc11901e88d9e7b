"""The programs that stand side by side: nginx, our gateway, any other command, and the mock engine behind them all."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.gateway_texts import unary_body

ROOT = Path(__file__).resolve().parents[1]
MODEL = "mock"
READY_WITHIN_S = 30.0

NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log error; {user}
events {{ worker_connections 4096; }}
http {{
    access_log off; tcp_nodelay on;
    keepalive_timeout 600s; keepalive_requests 1000000000;
    client_max_body_size 16m; client_body_buffer_size 2m;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream engine {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 600s; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location = /health {{ return 200 "ok"; }}
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 600s;
        }}
    }}
}}
"""


class CannotMeasure(Exception):
    """Something that the benchmark needs is absent or does not start; the text is for the person who ran it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Upstream:
    """Where the mock engine listens, and which of the two ways the subjects shall use."""

    unix_path: Path
    port: int
    kind: str

    @property
    def url(self) -> str:
        return f"unix:{self.unix_path}" if self.kind == "unix" else f"http://127.0.0.1:{self.port}"

    @property
    def nginx_server(self) -> str:
        return f"unix:{self.unix_path}" if self.kind == "unix" else f"127.0.0.1:{self.port}"

    def counts(self) -> dict[str, int]:
        """What the engine was asked since it started."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/counts")
        counts = json.loads(connection.getresponse().read())
        connection.close()
        return counts


_REQUEST = b'{"schema":"request/'


class JournalRecord(msgspec.Struct):
    """The fields of the gateway's journal that prove what the gateway did for a request."""

    outcome: str = ""
    status: int = 0
    key_id: str = ""
    usage_source: str = ""


@dataclass
class Journal:
    """Reads what was appended since the last look."""

    folder: Path
    offsets: dict[Path, int] = field(default_factory=dict[Path, int])

    def new_records(self) -> list[JournalRecord]:
        records: list[JournalRecord] = []
        for path in sorted(self.folder.glob("*.ndjson")):
            with path.open("rb") as file:
                file.seek(self.offsets.get(path, 0))
                lines = file.readlines()
                self.offsets[path] = file.tell()
            # Between them stand lines that say how far answers were sent.
            requests = (line for line in lines if line.startswith(_REQUEST))
            records += [msgspec.json.decode(line, type=JournalRecord) for line in requests]
        return records


@dataclass(frozen=True)
class Subject:
    """Something that answers chat requests at `address`. `pid` is the root of its processes (None: the engine itself);
    `health` a path that it answers without the engine (None: its stalls are not looked for). `rewritten`: it decodes
    answers and encodes them again. `translates`: it answers in Anthropic's dialect for engines that know chat. `share`
    of the common load is what it gets, so that a slow one ends in minutes."""

    name: str
    address: str
    pid: int | None = None
    model: str = MODEL
    key: str = "mk_none"
    health: str | None = "/health"
    journal: Journal | None = None
    rewritten: bool = False
    translates: bool = False
    share: float = 1.0


@contextlib.contextmanager
def child(
    argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, cwd: str | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """A process in its own group; the group ends with the block."""
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
                cwd=cwd,
            )
        except OSError as error:
            raise CannotMeasure(f"{argv[0]} does not start: {error.strerror}") from error
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


def end_children_on_sigterm() -> None:
    """Leave through the blocks that end the children, as an interrupt from the keyboard does."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def module_environment() -> dict[str, str]:
    """Children of ours find `benchmarks` wherever the command was given."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)}


@contextlib.contextmanager
def mock_engine(folder: Path, kind: str) -> Generator[Upstream]:
    upstream = Upstream(folder / "engine.sock", free_port(), kind)
    argv = [sys.executable, "-m", "benchmarks.gateway_mock"]
    argv += ["--unix", str(upstream.unix_path), "--port", str(upstream.port)]
    with child(argv, folder / "mock.log", module_environment()) as process:
        direct = Subject("mock", f"http://127.0.0.1:{upstream.port}")
        wait_until_it_answers(direct, process, folder / "mock.log")
        yield upstream


@contextlib.contextmanager
def nginx(folder: Path, upstream: Upstream) -> Generator[Subject]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise CannotMeasure("nginx is the yardstick of these budgets and is not installed: apt-get install nginx-light")
    port = free_port()
    user = "user root;" if os.getuid() == 0 else ""  # its worker must reach the engine's socket in a private folder
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX_CONF.format(folder=folder, upstream=upstream.nginx_server, port=port, user=user))
    argv = [program, "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(configuration)]
    with child(argv, folder / "nginx.log") as process:
        subject = Subject("nginx", f"http://127.0.0.1:{port}", process.pid)
        wait_until_it_answers(subject, process, folder / "nginx.log")
        yield subject


@contextlib.contextmanager
def our_gateway(folder: Path, upstream_url: str, model: str = MODEL) -> Generator[Subject]:
    """The data plane alone, as anybody starts it: keys, limits, metrics and journal are on by default."""
    state, key, port = folder / "state", f"mk_{secrets.token_urlsafe(24)}", free_port()
    beside = Path(sys.executable).parent / "modelyard"
    argv = [str(beside)] if beside.exists() else [sys.executable, "-m", "modelyard"]
    argv += ["gateway", "--upstream", upstream_url, "--model", model, "--port", str(port)]
    argv += ["--key", key, "--state", str(state)]
    with child(argv, folder / "gateway.log", {**os.environ, "MODELYARD_STATE": str(state)}) as process:
        address = f"http://127.0.0.1:{port}"
        journal = Journal(state / "journal")
        subject = Subject("gateway", address, process.pid, model, key, journal=journal, translates=True)
        wait_until_it_answers(subject, process, folder / "gateway.log")
        yield subject


@contextlib.contextmanager
def command(description: str, folder: Path, upstream: Upstream) -> Generator[Subject]:
    """`name=command line`, with {port}, {upstream}, {folder} and {model} filled in."""
    name, equals, line = description.partition("=")
    if not equals or not name.isidentifier():
        raise CannotMeasure(f"--subject wants NAME=COMMAND, not {description!r}")
    port = free_port()
    line = line.format(port=port, upstream=upstream.url, folder=folder, model=MODEL)
    log = folder / f"{name}.log"
    with child(shlex.split(line), log) as process:
        subject = Subject(name, f"http://127.0.0.1:{port}", process.pid)
        wait_until_it_answers(subject, process, log)
        yield subject


def wait_until_it_answers(
    subject: Subject, process: subprocess.Popen[bytes], log: Path, within_s: float = READY_WITHIN_S
) -> None:
    """Until one chat request gets its 200 through the subject."""
    deadline = time.monotonic() + within_s
    last = "no connection"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            status = _ask(subject)
            if status == 200:
                return
            last = f"status {status}"
        except (OSError, http.client.HTTPException) as error:
            last = str(error)
        time.sleep(0.05)
    state = "ended" if process.poll() is not None else f"does not answer ({last})"
    raise CannotMeasure(f"{subject.name} {state}; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")


def _ask(subject: Subject) -> int:
    connection = http.client.HTTPConnection(subject.address.removeprefix("http://"), timeout=5)
    try:
        headers = {"authorization": f"Bearer {subject.key}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", unary_body(subject.model, 800), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
