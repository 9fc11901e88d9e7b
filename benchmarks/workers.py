"""What several gateway workers cost: a request at a worker that is not the owner, and the memory of each.

`python -m benchmarks.workers [--workers 2] [--rounds 7] [--requests 2000] [--json FILE]` starts one gateway alone and a
group of them in front of the mock engine, and asks the same request over one connection to each: to the one that is
alone, to the owner, and to another worker, in turn. One request is out at a time, so that latency is all that is told;
once with a key that nothing bounds, once with one whose limits are counted. It judges nothing. Exit code 2: something
that is needed is absent."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.figures import percentile, rotated
from benchmarks.gateway_texts import unary_body
from benchmarks.processes import rss_bytes
from benchmarks.subjects import CannotMeasure, mock_engine
from modelyard.records.base import encode
from modelyard.records.keys import KeyCreated, Limits
from modelyard.records.secrets import key_record
from modelyard.records.topology import Deployment, Policy, Replica, Topology
from modelyard.state import StateDirectory, open_state

MODEL = "mock"
KEYS = {"unbounded": "my_0123456789ab_unbounded", "bounded": "my_ba9876543210_bounded"}
MANY = 1_000_000_000
WARM_UP = 200
MB = 1 << 20


@dataclass(frozen=True)
class Group:
    state: StateDirectory
    port: int
    pids: tuple[int, ...]

    def owner(self) -> int:
        """Who holds the lock, as the kernel tells."""
        inode = self.state.admission.with_suffix(".lock").stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "->" not in words and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return int(words[4])
        raise CannotMeasure("no worker owns")

    def pid_of(self, worker: str) -> int:
        """The process that writes the journal of this worker."""
        for pid in self.pids:
            for one in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(one).endswith(f"gateway-{worker}.ndjson"):
                        return pid
        raise CannotMeasure(f"nobody writes the journal of worker {worker}")


class Asking:
    """One connection, on which one request after the other is asked."""

    def __init__(self, group: Group) -> None:
        self._socket = socket.create_connection(("127.0.0.1", group.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pid = group.pid_of(self.ask(KEYS["unbounded"])[1])

    def ask(self, key: str) -> tuple[float, str]:
        """Seconds until the whole answer was there, and which worker gave it."""
        body = unary_body(MODEL, 700)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        request = head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        began = time.perf_counter()
        self._socket.sendall(request)
        answer = self._socket.recv(65536)
        while b"\r\n\r\n" not in answer or len(answer) < _length(answer):
            answer += self._socket.recv(65536)
        took = time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 200"):
            raise CannotMeasure(f"the gateway answered {answer[:300]!r}")
        return took, _field(answer, b"x-request-id").removeprefix("req_")[:8]

    def close(self) -> None:
        self._socket.close()


def _field(answer: bytes, name: bytes) -> str:
    begin = answer.lower().index(b"\r\n" + name + b": ") + len(name) + 4
    return answer[begin : answer.index(b"\r\n", begin)].decode()


def _length(answer: bytes) -> int:
    return answer.index(b"\r\n\r\n") + 4 + int(_field(answer, b"content-length"))


@contextlib.contextmanager
def gateways(folder: Path, upstream: str, workers: int) -> Generator[Group]:
    state = open_state(folder / f"state-{workers}")
    replica = Replica(name="r0", launch="l0", address=upstream, max_in_flight=64)
    plain = Deployment(
        name=MODEL, replicas=(replica,), engine_model=MODEL, context_tokens=0, created_at=1, open=True, policy=Policy()
    )
    state.topology.write_bytes(encode(Topology(generation=1, deployments=(plain,))))
    limits = Limits(requests_per_minute=MANY, tokens_per_minute=MANY, concurrent_requests=MANY)
    records = [
        key_record(KEYS["unbounded"], "unbounded", time.time()),
        key_record(KEYS["bounded"], "bounded", time.time(), limits=limits),
    ]
    state.keys.write_bytes(b"".join(encode(KeyCreated(key=one)) + b"\n" for one in records))
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        lifeline, ours = os.pipe()
        held.callback(os.close, lifeline)
        held.callback(os.close, ours)
        argv = [sys.executable, "-m", "modelyard.gateway", "--state", str(state.root)]
        argv += ["--listen-fd", str(listener.fileno()), "--lifeline-fd", str(lifeline)]
        argv += ["--connections-per-address", "1000", "--workers", str(workers)]
        pids = tuple(
            _start(held, [*argv, "--worker", str(number)], (listener.fileno(), lifeline), folder)
            for number in range(workers)
        )
        yield Group(state, listener.getsockname()[1], pids)


def _start(held: contextlib.ExitStack, argv: Sequence[str], descriptors: tuple[int, ...], folder: Path) -> int:
    """Returns once it serves."""
    ready, told = os.pipe()
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [*argv, "--ready-fd", str(told)], pass_fds=(*descriptors, told), stdout=log, stderr=log
        )
    held.callback(process.wait)
    held.callback(process.kill)
    os.close(told)
    with open(ready, "rb", buffering=0) as told_us:
        if not told_us.read(1):
            raise CannotMeasure(f"a gateway does not start; see {folder / 'gateway.log'}")
    return process.pid


def connections(alone: Group, group: Group) -> dict[str, Asking]:
    """One to each of the three that are compared."""
    found = {"alone": Asking(alone)}
    while len(found) < 3:
        one = Asking(group)
        if found.setdefault("owner" if one.pid == group.owner() else "another", one) is not one:
            one.close()
    return found


def measured(workers: int, rounds: int, requests: int) -> dict[str, object]:
    """Times are medians over the rounds, ratios those of the same round's gateway that is alone."""
    with tempfile.TemporaryDirectory(prefix="workers-") as name, contextlib.ExitStack() as held:
        folder = Path(name)
        upstream = held.enter_context(mock_engine(folder, "unix"))
        alone = held.enter_context(gateways(folder, upstream.url, 1))
        group = held.enter_context(gateways(folder, upstream.url, workers))
        asking = connections(alone, group)
        idle = [rss_bytes([pid]) / MB for pid in (*alone.pids, *group.pids)]
        p50: dict[str, list[float]] = {}
        p99: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for key in KEYS:
                for who in rotated(list(asking), number):
                    took = [asking[who].ask(KEYS[key])[0] for _ in range(requests if number else WARM_UP)]
                    if number:
                        p50.setdefault(f"{key} {who}", []).append(percentile(took, 50) * 1e6)
                        p99.setdefault(f"{key} {who}", []).append(percentile(took, 99) * 1e6)
        loaded = [rss_bytes([pid]) / MB for pid in (*alone.pids, *group.pids)]
    rows: dict[str, object] = {}
    for row in p50:
        base = f"{row.split()[0]} alone"
        ratios = [one / other for one, other in zip(p50[row], p50[base], strict=True)]
        rows[row] = {"p50_us": round(median(p50[row])), "p99_us": round(median(p99[row])), "ratio": median(ratios)}
    memory = {"alone": (idle[0], loaded[0]), "each of the group": (max(idle[1:]), max(loaded[1:]))}
    return {"workers": workers, "rounds": rounds, "requests": requests, "latency": rows, "memory_mib": memory}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000, help="to each of the three, in each round")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    try:
        found = measured(max(2, chosen.workers), chosen.rounds, chosen.requests)
    except CannotMeasure as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
