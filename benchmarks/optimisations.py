"""What each optimisation does, on against off: tokens a second, time to the first token, memory, on every engine.

Two launches of one engine stand side by side that differ in nothing but the optimisation, both started through the
planner and the adapter from what a deployment may say. They get the same prompts in interleaved pairs, the half that
goes first alternates, and only one of them works at a time. Answers are asked at temperature 0 and compared: what
should not change them shows that it does not, as far as rounding allows.

`./yard dev python -m benchmarks.optimisations` prints one table and exits 0; 2 where a cell that an engine offers could
not be measured (it says why). There are no budgets: which optimisation pays depends on the model and the machine. A
draft model is made by cutting layers out of the model (benchmarks/drafts.py): it proves the mechanism, not the gain.
"""

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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import get_args

if not __package__:  # run by path: the folder of this file stands where the repository should
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import processes, subjects
from benchmarks.engine_load import Chats
from benchmarks.gateway_bench import watching_memory
from benchmarks.jobs import LoadProcess, WrongResult
from benchmarks.optimisations_cases import CASES, WORK, Case, EngineName, Optimisation, Work
from benchmarks.optimisations_engines import Bench
from benchmarks.optimisations_prompts import prompts
from benchmarks.optimisations_table import METRICS, Half, Pair, not_offered, ratio, same_answers, table
from benchmarks.subjects import CannotMeasure, Subject
from modelyard import settings
from modelyard.state import open_state

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
OPTIMISATIONS: tuple[Optimisation, ...] = get_args(Optimisation)
Found = dict[tuple[Optimisation, EngineName], list[Pair] | str]


@dataclass(frozen=True)
class Contest:
    """Two launches of one engine, and what both are asked."""

    generator: LoadProcess
    on: Subject
    off: Subject
    work: Work
    chance: random.Random

    def pairs(self, count: int) -> list[Pair]:
        self._pair(0)  # the first prompts of a launch are slower
        return [self._pair(number) for number in range(count)]

    def _pair(self, number: int) -> Pair:
        fresh = prompts(self.work.kind, self.chance, self.work.requests)
        halves = {"on": self.on, "off": self.off}
        order = list(halves)[:: 1 if number % 2 == 0 else -1]
        told = {name: self._half(halves[name], fresh) for name in order}
        return Pair(told["on"], told["off"])

    def _half(self, subject: Subject, fresh: list[str]) -> Half:
        job = Chats(subject.address, subject.key, subject.model, self.work.clients, self.work.max_tokens, fresh)
        with watching_memory(subject) as resident:
            result = self.generator.run(job)
        return Half(
            tokens_per_s=result["tokens"] / result["elapsed_s"],
            first_token_s=median(result["first_token_s"]),
            longest_gap_s=max(result["longest_gap_s"]),
            memory_bytes=max(resident),
            answers=tuple(result["answers"]),
        )


@dataclass(frozen=True)
class Run:
    bench: Bench
    generator: LoadProcess
    folder: Path
    chosen: argparse.Namespace

    def cell(self, optimisation: Optimisation, engine: EngineName) -> list[Pair] | str:
        case = CASES[engine][optimisation]
        if not isinstance(case, Case):
            return not_offered(optimisation, engine) or ""
        try:
            return self._measured(optimisation, engine, case)
        except (CannotMeasure, WrongResult) as error:
            return f"could not be measured: {error}"

    def _measured(self, optimisation: Optimisation, engine: EngineName, case: Case) -> list[Pair]:
        work = WORK[optimisation]
        if self.chosen.quick:
            work = replace(work, requests=-(-work.requests // 2), max_tokens=-(-work.max_tokens // 2))
        place = self.folder / f"{OPTIMISATIONS.index(optimisation)}{ENGINES.index(engine)}"
        place.mkdir()
        with contextlib.ExitStack() as stack:
            on = stack.enter_context(self.bench.running(engine, case.on, place / "on"))
            off = stack.enter_context(self.bench.running(engine, case.off, place / "off"))
            chance = random.Random(f"{self.chosen.seed}/{optimisation}")
            return Contest(self.generator, on, off, work, chance).pairs(self.chosen.pairs)


def report(found: Found, chosen: argparse.Namespace, foreign_cores: float) -> str:
    """What the JSON file says; answers are left out, whether they agree stands there."""
    cells: list[dict[str, object]] = []
    for (optimisation, engine), what in found.items():
        cell: dict[str, object] = {"optimisation": optimisation, "engine": engine}
        if isinstance(what, str):
            cells.append(cell | {"why_not": what})
            continue
        halves = [{"on": _numbers(pair.on), "off": _numbers(pair.off)} for pair in what]
        ratios = {metric.label: asdict(ratio(what, metric)) for metric in METRICS}
        cells.append(cell | {"pairs": halves, "ratios": ratios, "same_answers": same_answers(what)})
    content = {
        "schema": "benchmark-optimisations/v1",
        "command": [sys.executable, *sys.argv],
        "at": time.time(),
        "machine": {
            "processor": processes.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "foreign_cores": foreign_cores,
        "model": chosen.model,
        "work": {name: asdict(work) for name, work in WORK.items()},
        "cells": cells,
    }
    return json.dumps(content, indent=1) + "\n"


def _numbers(half: Half) -> dict[str, float]:
    return {name: value for name, value in asdict(half).items() if name != "answers"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only this one (repeatable)")
    parser.add_argument("--only", action="append", choices=OPTIMISATIONS, help="only this one (repeatable)")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="half of the requests and tokens: not evidence")
    parser.add_argument("--model", default="smollm2", help="what a deployment would name")
    parser.add_argument("--state", type=Path, help="where engines and models are kept; else the usual place")
    parser.add_argument("--seed", default="modelyard")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.pairs < 2:
        parser.error("--pairs: an interval wants at least two")
    return chosen


def main() -> int:
    chosen = arguments()
    subjects.end_children_on_sigterm()
    known = settings.load()
    found: Found = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-")))  # short: sockets lie in it
        generator = LoadProcess("benchmarks.engine_load", folder / "load.log")
        stack.callback(generator.end)
        bench = Bench(open_state(chosen.state or known.state_dir), known, chosen.model, folder / "drafts")
        run = Run(bench, generator, folder, chosen)
        neighbours = processes.Neighbours()
        for optimisation in chosen.only or OPTIMISATIONS:
            for engine in chosen.engine or ENGINES:
                found[optimisation, engine] = what = run.cell(optimisation, engine)
                said = what if isinstance(what, str) else f"{len(what)} pairs"
                print(f"{optimisation}, {engine}: {said}", file=sys.stderr, flush=True)
        foreign_cores = neighbours.cores_taken()
    print(table(found, chosen.only or OPTIMISATIONS, chosen.engine or ENGINES))
    print(processes.note_on_neighbours(foreign_cores))
    if chosen.json is not None:
        chosen.json.write_text(report(found, chosen, foreign_cores))
    return 2 if any(_is_open(key, what) for key, what in found.items()) else 0


def _is_open(key: tuple[Optimisation, EngineName], what: Sequence[Pair] | str) -> bool:
    return isinstance(what, str) and not_offered(*key) is None


if __name__ == "__main__":
    sys.exit(main())
