"""Many streams at once, each side on a core of its own: what the gateway loses, and how late it is.

`python -m benchmarks.fanout [--streams 512] [--events 1200] [--json FILE]` sends that many streams of 50 events a
second to the mock engine directly and through the gateway, which has one core; the load generator and the engine share
the others. Every stream is compared with what the engine said, byte for byte: an event that was lost, doubled or moved
ends the run with exit code 1. 2: something that is needed is absent. It judges no times: `selftest --rows 3` does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import processes, subjects
from benchmarks.gateway_bench import Bench, Sizes
from benchmarks.jobs import LoadProcess, WrongResult
from benchmarks.subjects import CannotMeasure, Subject

SETTLE_S = 2.0


def keep_to(pids: Iterable[int], cores: set[int]) -> None:
    """Every thread of these processes runs on these cores only."""
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)


def measured(streams: int, events: int) -> dict[str, object]:
    """Raises CannotMeasure, or WrongResult where a stream is not what the engine said."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise CannotMeasure("the load generator needs a core beside the gateway's, and there is one in all")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        # Children inherit it: the engine and the load generator.
        os.sched_setaffinity(0, set(cores[1:]))
        upstream = stack.enter_context(subjects.mock_engine(folder, "unix"))
        gateway = stack.enter_context(subjects.our_gateway(folder, upstream.url))
        assert gateway.pid is not None and gateway.journal is not None
        keep_to(processes.tree(gateway.pid), {cores[0]})
        generator = LoadProcess("benchmarks.gateway_load", folder / "load.log")
        stack.callback(generator.end)
        bench = Bench(generator, upstream, Sizes(streams=streams, stream_events=events))
        gateway.journal.new_records()  # those of the wait for its readiness
        time.sleep(SETTLE_S)
        neighbours = processes.Neighbours()
        for subject in (Subject("direct", upstream.url), gateway):
            bench.measure("streams", subject)
        return {
            "schema": "benchmark-fanout/v1",
            "command": [sys.executable, *sys.argv],
            "streams": streams,
            "events": streams * events,
            "journal_records_counted": bench.records_counted,
            "samples": bench.samples,
            "foreign_cores": neighbours.cores_taken(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--events", type=int, default=1200, help="of each stream, 50 a second")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    subjects.end_children_on_sigterm()
    try:
        found = measured(chosen.streams, chosen.events)
    except CannotMeasure as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    except WrongResult as error:
        print(f"wrong result: {error}", file=sys.stderr)
        found = {"schema": "benchmark-fanout/v1", "wrong": str(error)}
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    return 1 if "wrong" in found else 0


if __name__ == "__main__":
    sys.exit(main())
