"""Tokens a second through our gateway and on the engine's own port: the same engine process, artifact, settings, client
and cores, in interleaved pairs. Exits 1 where the lower bound of the ratio is under the budget.

By itself it starts the OpenVINO engine server and `modelyard gateway` before it; `--engine-url` with `--gateway-url`,
`--key` and `--model` measures a pair that runs already. Every request has a fresh prompt of one make, so that the
prefix cache helps both alike; within a pair the two halves take turns, request by request."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run by path: the folder of this file stands where the repository should
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import processes, subjects
from benchmarks.engine_load import Chats
from benchmarks.figures import Interval, ratio_interval
from benchmarks.jobs import LoadProcess, WrongResult
from benchmarks.subjects import CannotMeasure, Subject
from modelyard import settings
from modelyard.state import StateDirectory

BUDGET = 0.95
LOAD_WITHIN_S = 120.0
PROGRAM = subjects.ROOT / "src" / "modelyard" / "programs" / "openvino_server.py"
ANIMALS = ["fox", "otter", "heron", "lynx", "badger", "raven", "salmon", "hedgehog", "tortoise", "falcon"]
PLACES = [
    "harbour",
    "desert",
    "library",
    "lighthouse",
    "orchard",
    "glacier",
    "market",
    "observatory",
    "monastery",
    "railway",
]
THINGS = ["compass", "violin", "lantern", "map", "clock", "kite", "telescope", "locket", "ledger", "mirror"]


@dataclass(frozen=True)
class Pair:
    """Tokens a second of the two halves."""

    direct: float
    gateway: float


def prompts(chance: random.Random, count: int) -> list[str]:
    """Different from the first word on, alike in length and in what they ask for."""
    return [
        f"{chance.choice(ANIMALS).title()} number {chance.randrange(10**6)}: write a very long and detailed story "
        f"about a {chance.choice(ANIMALS)}, a {chance.choice(THINGS)} and a {chance.choice(PLACES)}. Do not end soon."
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Contest:
    generator: LoadProcess
    direct: Subject
    gateway: Subject
    chosen: argparse.Namespace

    def pairs(self, concurrency: int) -> list[Pair]:
        chance = random.Random(f"{self.chosen.seed}/{concurrency}")
        for subject in (self.direct, self.gateway):
            self._turn(subject, concurrency, chance)
        return [self._pair(number, concurrency, chance) for number in range(self.chosen.pairs)]

    def _pair(self, number: int, concurrency: int, chance: random.Random) -> Pair:
        """The two halves take turns, a request of each client at a time, a b b a a b ...: these machines change their
        speed by a tenth within seconds, and that shall meet both halves alike."""
        tokens, elapsed_s = dict.fromkeys(("direct", "gateway"), 0.0), dict.fromkeys(("direct", "gateway"), 0.0)
        for turn in range(self.chosen.requests_per_client):
            first_is_direct = (number + turn) % 2 == 0
            for subject in (self.direct, self.gateway)[:: 1 if first_is_direct else -1]:
                result = self._turn(subject, concurrency, chance)
                tokens[subject.name] += result["tokens"]
                elapsed_s[subject.name] += result["elapsed_s"]
        pair = Pair(tokens["direct"] / elapsed_s["direct"], tokens["gateway"] / elapsed_s["gateway"])
        progress = (
            f"{concurrency} clients, pair {number + 1}: direct {pair.direct:.1f}, gateway {pair.gateway:.1f} tok/s"
        )
        print(progress, file=sys.stderr, flush=True)
        return pair

    def _turn(self, subject: Subject, concurrency: int, chance: random.Random) -> dict[str, float]:
        """One request of each client, all at once: tokens, and seconds until the last byte."""
        fresh = prompts(chance, concurrency)
        job = Chats(subject.address, subject.key, subject.model, concurrency, self.chosen.max_tokens, fresh)
        try:
            result = self.generator.run(job)
        except WrongResult as error:
            raise WrongResult(f"{subject.name}: {error}") from None
        if subject.journal is not None and len(subject.journal.new_records()) != len(fresh):
            raise WrongResult(f"gateway: its journal does not have one record for each of {len(fresh)} requests")
        return result


def keep_to_cores(count: int) -> list[int]:
    """This process and all that it starts share these cores."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return cores


@contextlib.contextmanager
def openvino_server(folder: Path, chosen: argparse.Namespace) -> Generator[Subject]:
    state = StateDirectory(chosen.state or settings.load().state_dir)
    python = chosen.engine_python or _newest(state.environments, "openvino-*/bin/python", "--engine-python")
    model = chosen.model_path or _newest(state.store, "artifacts/*/*.gguf", "--model-path")
    address = f"unix:{folder / 'engine.sock'}"
    configuration: dict[str, Any] = {
        "model_path": str(Path(model).absolute()),
        "served_name": chosen.model,
        "address": address,
        "threads": 2,
        "kv_cache_bytes": 512 << 20,
        "max_batched_tokens": 128,
        "max_sequences": 16,
        "max_queued": 64,
        "context_tokens": 8192,
        "prefix_cache": True,
        "speculative_tokens": 0,
        "draft_model": "",
        "properties": {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "u8",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        },
        "stall_s": 30.0,
        "default_temperature": 1.0,
        "default_top_p": 1.0,
    }
    if chosen.engine_config:
        configuration |= json.loads(chosen.engine_config.read_text())
    file, log = folder / "engine.json", folder / "engine.log"
    file.write_text(json.dumps(configuration))
    with subjects.child([str(python), str(PROGRAM), "--config", str(file)], log) as process:
        deadline = time.monotonic() + LOAD_WITHIN_S
        while not any(line.startswith("ready ") for line in log.read_text(errors="replace").splitlines()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CannotMeasure(
                    f"the engine does not get ready; its log:\n{log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.1)
        yield Subject("direct", address, process.pid, chosen.model)


def _newest(folder: Path, pattern: str, option: str) -> Path:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CannotMeasure(f"nothing like {pattern} in {folder}: run `modelyard up` once, or give {option}")
    return found[-1]


@contextlib.contextmanager
def contestants(folder: Path, chosen: argparse.Namespace) -> Generator[tuple[Subject, Subject]]:
    with contextlib.ExitStack() as stack:
        if chosen.engine_url:
            direct = Subject("direct", chosen.engine_url, None, chosen.engine_model or chosen.model)
        else:
            direct = stack.enter_context(openvino_server(folder, chosen))
        if chosen.gateway_url:
            gateway = Subject("gateway", chosen.gateway_url, None, chosen.model, chosen.key)
        else:
            gateway = stack.enter_context(subjects.our_gateway(folder, direct.address, chosen.model))
            assert gateway.journal is not None
            gateway.journal.new_records()
        yield direct, gateway


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-url", help="a running engine: http://127.0.0.1:PORT or unix:/PATH")
    parser.add_argument("--engine-model", help="the model's name there, where it is not --model")
    parser.add_argument("--gateway-url", help="a running gateway before that engine: http://127.0.0.1:PORT")
    parser.add_argument("--key", default="", help="the key for --gateway-url")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--engine-python", type=Path, help="a Python with openvino-genai")
    parser.add_argument("--engine-config", type=Path, help="JSON over the engine server's settings of this benchmark")
    parser.add_argument("--model-path", type=Path, help="the GGUF file to serve")
    parser.add_argument("--state", type=Path, help="where an installed environment and model are looked for")
    parser.add_argument("--concurrency", type=int, action="append", help="default: 1, 4 and 8")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests-per-client", type=int, default=8, help="in each half of a pair: so many turns")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--cores", type=int, default=2, help="client, gateway and engine share so many")
    parser.add_argument("--seed", default="modelyard")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.gateway_url and not chosen.engine_url:
        parser.error("--gateway-url wants --engine-url: both halves must reach the same engine")
    return chosen


def main() -> int:
    chosen = arguments()
    subjects.end_children_on_sigterm()
    cores = keep_to_cores(chosen.cores)
    measured: dict[int, list[Pair]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        try:
            direct, gateway = stack.enter_context(contestants(folder, chosen))
            generator = LoadProcess("benchmarks.engine_load", folder / "load.log")
            stack.callback(generator.end)
            contest = Contest(generator, direct, gateway, chosen)
            neighbours = processes.Neighbours()
            for concurrency in chosen.concurrency or (1, 4, 8):
                measured[concurrency] = contest.pairs(concurrency)
            foreign_cores = neighbours.cores_taken()
        except CannotMeasure as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 2
        except WrongResult as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
    ratios = {concurrency: ratio(pairs) for concurrency, pairs in measured.items()}
    show(measured, ratios)
    if not chosen.engine_url:  # else the engine itself would count as foreign
        print(processes.note_on_neighbours(foreign_cores))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report(measured, ratios, cores), indent=1) + "\n")
    broken = [concurrency for concurrency, interval in ratios.items() if interval.low < BUDGET]
    for concurrency in broken:
        print(f"budget broken: engine throughput through the gateway, {concurrency} clients", file=sys.stderr)
    return 1 if broken else 0


def ratio(pairs: list[Pair]) -> Interval:
    return ratio_interval([pair.gateway for pair in pairs], [pair.direct for pair in pairs])


def show(measured: dict[int, list[Pair]], ratios: dict[int, Interval]) -> None:
    print(
        f"{'clients':>7}  {'direct tok/s':>12}  {'gateway tok/s':>13}  ratio, 95 % interval (budget: low >= {BUDGET})"
    )
    for concurrency, pairs in measured.items():
        interval = ratios[concurrency]
        verdict = "ok" if interval.low >= BUDGET else "BROKEN"
        speeds = f"{median(p.direct for p in pairs):>12.1f}  {median(p.gateway for p in pairs):>13.1f}"
        bounds = f"{interval.mean:.3f} ({interval.low:.3f}-{interval.high:.3f})"
        print(f"{concurrency:>7}  {speeds}  {bounds}  {verdict}")


def report(measured: dict[int, list[Pair]], ratios: dict[int, Interval], cores: list[int]) -> dict[str, object]:
    return {
        "schema": "benchmark-engine/v1",
        "command": [sys.executable, *sys.argv],
        "at": time.time(),
        "machine": {
            "processor": processes.processor(),
            "cores": cores,
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "budget": BUDGET,
        "concurrency": {
            concurrency: {"pairs": [asdict(pair) for pair in pairs], "ratio": asdict(ratios[concurrency])}
            for concurrency, pairs in measured.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
