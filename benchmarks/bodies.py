"""What bodies of the largest size cost the gateway, and how long one keeps everybody else waiting.

`python -m benchmarks.bodies [--times 5] [--json FILE]` sends bodies of nearly 8 MB, honest and hostile ones, each a few
times through the gateway to the mock engine, and prints for each: the CPU of one request, the longest stall of the
event loop (that of a request for /health every 2 ms, less the time in which somebody else had the core), and what the
client was told. About a minute. It exits 1 where an answer is not the expected one or a stall is longer than 20 ms."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

from benchmarks import gateway_table, processes, subjects
from benchmarks.stalls import probing
from benchmarks.subjects import MODEL, CannotMeasure, Subject

MB = 1024 * 1024
LONGEST_STALL_MS = 20.0
PATH = "/v1/chat/completions"
PROSE = 'The quick brown fox says "hi", and the lazy dog:\n nothing. ' * 100


@dataclass(frozen=True)
class Body:
    name: str
    make: Callable[[], bytes]
    status: int = 200


@dataclass(frozen=True)
class Figures:
    """`told` is the status of the answer, with the code of a refusal."""

    name: str
    size_bytes: int
    cpu_ms: float
    stall_ms: float
    raw_ms: float
    told: str


def _chat(*texts: str, spaced: bool = False, escaped: bool = False) -> bytes:
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": text} for text in texts]}
    return json.dumps(body, ensure_ascii=escaped, separators=None if spaced else (",", ":")).encode()


def _with(field: bytes, parts: Iterator[bytes], brackets: bytes) -> bytes:
    """A chat with one more field, which no engine is sent."""
    inside = b",".join(parts)
    return b'%b,"%b":%b%b%b}' % (_chat("hello")[:-1], field, brackets[:1], inside, brackets[1:])


def _tools() -> bytes:
    properties = {f"p{number}": {"type": "string"} for number in range(350)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "tools": [tool] * 60}).encode()


BODIES = (
    Body("prose, compact", lambda: _chat(*[PROSE] * 1300)),
    Body("prose, with spaces", lambda: _chat(*[PROSE] * 1300, spaced=True)),
    Body("Chinese, as it is", lambda: _chat(*["漢字かな交じり文、" * 290] * 1000)),
    Body("Chinese, all of it escaped", lambda: _chat(*["漢字かな交じり文、" * 140] * 1000, spaced=True, escaped=True)),
    Body("JSON in a text", lambda: _chat(json.dumps([{"a": i, "b": [1, 2]} for i in range(85_000)]), spaced=True)),
    Body("nothing but quotes", lambda: _chat('"' * (4 * MB - 100), spaced=True)),
    Body("nothing but commas", lambda: _chat(*["," * (4 * MB - 1000)] * 2, spaced=True)),
    Body("149,000 texts", lambda: _with(b"x", (b'"%048d"' % i for i in range(149_000)), b"[]")),
    Body("149,000 numbers of 50 digits", lambda: _with(b"x", (b"1%048d" % i for i in range(149_000)), b"[]")),
    Body("49,000 keys of 140 bytes", lambda: _with(b"x", (b'"%0140d": 0' % i for i in range(49_000)), b"{}")),
    Body("49,000 objects", lambda: _with(b"x", (b'{"%0140d": 0}' % i for i in range(49_000)), b"[]")),
    Body("60 tools of 350 parameters", _tools),
    Body(
        "a key twice among 49,000",
        lambda: _with(b"x", (b'"%d":1.0e0' % (i % 48_999) for i in range(49_000)), b"{}"),
        400,
    ),
    Body("a million keys", lambda: _with(b"x", (b'"%d":0' % i for i in range(700_000)), b"{}"), 400),
    Body("millions of lists", lambda: _with(b"x", iter([b"[]"] * 2_600_000), b"[]"), 400),
)


def ask(subject: Subject, body: bytes) -> tuple[int, str]:
    """Status, and what was told."""
    connection = HTTPConnection(subject.address.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", PATH, body, {"authorization": f"Bearer {subject.key}"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        code = f" {answer['error']['code']}" if "error" in answer else ""
        return response.status, f"{response.status}{code}"
    finally:
        connection.close()


def measured(gateway: Subject, body: Body, times: int) -> Figures:
    assert gateway.pid is not None
    sent, pids = body.make(), processes.tree(gateway.pid)
    cpu_ms: list[float] = []
    told = ""
    for _ in range(times):
        before_ns = processes.cpu_ns(pids)
        status, told = ask(gateway, sent)
        cpu_ms.append((processes.cpu_ns(pids) - before_ns) / 1e6)
        if status != body.status:
            raise CannotMeasure(f"{body.name}: {told} instead of {body.status}")
    # Apart from the CPU figure: the probe's own requests cost some.
    with probing(gateway) as probe:
        for _ in range(times):
            time.sleep(0.02)
            ask(gateway, sent)
    stall_ms, raw_ms = max(probe.stalls_s) * 1e3, max(probe.raw_s) * 1e3
    return Figures(body.name, len(sent), median(cpu_ms), stall_ms, raw_ms, told)


def table(found: list[Figures]) -> str:
    lines = [("body", "MB", "CPU of one [ms]", "longest stall [ms]", "answer")]
    for one in found:
        size = f"{one.size_bytes / MB:.1f}"
        lines.append((one.name, size, f"{one.cpu_ms:.1f}", f"{one.stall_ms:.1f}", one.told))
    return gateway_table.aligned(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often each body is sent, with and without the probe")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    subjects.end_children_on_sigterm()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        try:
            upstream = stack.enter_context(subjects.mock_engine(folder, "unix"))
            gateway = stack.enter_context(subjects.our_gateway(folder, upstream.url))
            neighbours = processes.Neighbours()
            found = [measured(gateway, body, chosen.times) for body in BODIES]
        except CannotMeasure as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 1
        foreign_cores = neighbours.cores_taken()
    print(table(found))
    print(processes.note_on_neighbours(foreign_cores))
    if chosen.json is not None:
        facts = {
            "schema": "benchmark-bodies/v1",
            "foreign_cores": foreign_cores,
            "bodies": [asdict(one) for one in found],
        }
        chosen.json.write_text(json.dumps(facts, indent=1) + "\n")
    late = [one for one in found if one.stall_ms > LONGEST_STALL_MS]
    for one in late:
        print(f"budget broken: {one.name}: {one.stall_ms:.1f} ms of {LONGEST_STALL_MS:g}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
