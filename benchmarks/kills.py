"""Kill -9 under load: what becomes of every request, and how long until all is well again.

    python -m benchmarks.kills [--engine fake|real] [--kills 20] [--only engine|shim|control|gateway|yard] [--seed N]

A whole yard is started on a fresh state directory and put under a mix of streamed and plain requests, each with a
deadline of its own. At random (seeded) moments one of its processes is killed; the next kill waits until all is well.
What holds for every row: no request hangs, none is answered wrongly or called complete when it is not, and every
answer that a client received to its end stands in the journal exactly once.

    engine, shim   each request is answered, told 503 with Retry-After, or (a stream under way) ends in an error event;
                   the replica is ready again within its load time + 5 s
    control        no request fails; the engines are the same processes as before
    gateway        sockets are reset within 1 s, a new connection is answered within 2 s, the engines are free in 2 s
    yard           after 5 s no process, port or socket is left; the same start serves again (also before they are over)

An engine that is stopped (SIGSTOP), and so there but silent, is replaced; that takes its probes half a minute, so it is
done for a fifth of the kills.

With FakeEngines the engines are one and two replicas; `real` serves a model of the catalogue by `modelyard up`, with
what is installed and fetched already in the state directory MODELYARD_STATE_CACHE (or the usual one). Five starts in
ten minutes are a crash loop, and a replica in one is not started again. That is right, so the campaign leaves it be: it
asks for an operator's restart, which begins a new history, after each group of four kills.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks import kills_journal, processes
from benchmarks.kills_client import Client, Load, Question, counts_of
from benchmarks.kills_journal import JournalCheck
from benchmarks.kills_rows import CAMPAIGNS, PROMISED, Bounds, Row, Site, run_row
from benchmarks.kills_yard import KilledYard, fake_yard, real_yard
from benchmarks.subjects import CannotMeasure, end_children_on_sigterm
from modelyard import settings
from modelyard.errors import ModelyardError
from modelyard.selftest.asking import VERDICTS

FAKE_KNOBS: dict[str, float | int | str | bool] = {"token_interval_s": 0.02, "startup_s": 0.3}
PROMPTS = ("Tell me about rivers.", "Write a long list of words.", "Why do cats sleep so much?")


@dataclass(frozen=True)
class Scene:
    """How one yard is loaded, and which rows are run on it."""

    rows: tuple[str, ...]
    replicas: int
    clients: int
    tokens: tuple[int, int]
    strike_after_s: tuple[float, float]
    deadline_s: float
    bounds: Bounds = PROMISED


FAKE_SCENES = (
    Scene(("engine",), 1, 8, (4, 40), (0.3, 1.2), 20.0),
    Scene(
        (
            "engine",
            "shim",
            "control",
            "engine, then control",
            "gateway",
            "yard",
            "yard, started at once",
            "yard that starts",
        ),
        2,
        12,
        (4, 40),
        (0.3, 1.2),
        20.0,
    ),
    Scene(("engine stopped",), 2, 12, (4, 40), (0.3, 1.2), 90.0),
)
REAL_SCENE = Scene(("engine", "shim", "control", "gateway", "yard"), 1, 4, (8, 48), (1.0, 5.0), 120.0)


@dataclass(frozen=True)
class Result:
    """One scene's rows, and what its journal says."""

    scene: Scene
    rows: tuple[Row, ...]
    journal: JournalCheck


async def play(scene: Scene, yard: KilledYard, only: tuple[str, ...], kills: int, rng: random.Random) -> Result:
    """Run the scene's rows on a yard that was just started."""

    def ask_about(dice: random.Random) -> Question:
        return question(yard, dice.randint(*scene.tokens), dice)

    await yard.ready()
    await yard.make_key()
    rows: list[Row] = []
    clients = [Client(yard.port, yard.key, scene.deadline_s) for _ in range(scene.clients)]
    async with Load(clients, ask_about, rng) as load:
        short = question(yard, scene.tokens[0], rng)
        site = Site(yard, load, short, rng, scene.replicas, scene.strike_after_s, scene.deadline_s, scene.bounds)
        for target in scene.rows:
            if target in only:
                wanted = max(kills // 5, 1) if target == "engine stopped" else kills
                rows.append(await run_row(target, CAMPAIGNS[target], site, wanted))
                print(line_of(rows[-1], scene.replicas), flush=True)
        return Result(scene, tuple(rows), kills_journal.check(yard.state.journal, load.answers))


def question(yard: KilledYard, tokens: int, dice: random.Random) -> Question:
    stream = dice.random() < 0.6
    message = {"role": "user", "content": f"{dice.choice(PROMPTS)} ({dice.randint(1, 50)})"}
    asked = {"model": yard.deployment, "messages": [message], "max_tokens": tokens, "stream": stream, "temperature": 0}
    is_fake = yard.engine_name == "fake"
    expected = " ".join(f"w{index}" for index in range(tokens)) if is_fake else None
    return Question(json.dumps(asked).encode(), stream, expected)


COLUMNS = "".join(f" {verdict:>11}" for verdict in VERDICTS)
HEAD = f"{'killed':<22} {'replicas':>8} {'kills':>5} {'in flight':>9} {'sent':>6}{COLUMNS}"


def line_of(row: Row, replicas: int) -> str:
    counts = counts_of(row.answers)
    numbers = "".join(f" {counts[verdict]:>11}" for verdict in VERDICTS)
    text = f"{row.target:<22} {replicas:>8} {row.kills:>5} {row.in_flight:>9} {len(row.answers):>6}{numbers}"
    for name, seconds in row.times.items():
        text += f"\n    {name:<18} {median(seconds):6.2f} s median  {max(seconds):6.2f} s at most"
    return text + "".join(f"\n    WRONG: {problem}" for problem in row.problems)


def report(results: Iterable[Result], seed: int, engine: str) -> dict[str, object]:
    return {
        "schema": "benchmark-kills/v1",
        "command": [sys.executable, *sys.argv],
        "at": time.time(),
        "engine": engine,
        "seed": seed,
        "machine": {
            "processor": processes.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "scenes": [
            {
                "scene": asdict(result.scene),
                "journal": asdict(result.journal),
                "rows": [
                    {
                        "target": row.target,
                        "kills": row.kills,
                        "in_flight_at_kills": row.in_flight,
                        "sent": len(row.answers),
                        **counts_of(row.answers),
                        "times_s": row.times,
                        "problems": row.problems,
                    }
                    for row in result.rows
                ],
            }
            for result in results
        ],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("fake", "real"), default="fake")
    parser.add_argument("--kills", type=int, default=20, help="of each target")
    parser.add_argument("--only", action="append", choices=tuple(CAMPAIGNS), help="default: all. Repeatable.")
    parser.add_argument("--model", default="smollm2", help="for the real engine: a name of the catalogue")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, help="keep the state directories here (must be short and absent)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


async def run(chosen: argparse.Namespace, folder: Path, seed: int) -> list[Result]:
    rng, only = random.Random(seed), tuple(chosen.only or CAMPAIGNS)
    results: list[Result] = []
    for number, scene in enumerate(FAKE_SCENES if chosen.engine == "fake" else (REAL_SCENE,)):
        if not set(scene.rows) & set(only):
            continue
        state = folder / str(number)
        if chosen.engine == "fake":
            yard_context = fake_yard(state, scene.replicas, FAKE_KNOBS)
        else:
            cache = os.environ.get("MODELYARD_STATE_CACHE")
            yard_context = real_yard(state, Path(cache) if cache else settings.load().state_dir, chosen.model)
        with yard_context as yard:
            results.append(await play(scene, yard, only, chosen.kills, rng))
        print(results[-1].journal.in_words, flush=True)
    return results


def main() -> int:
    chosen = arguments()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1_000_000)
    end_children_on_sigterm()
    print(f"{chosen.engine} engine, seed {seed}\n{HEAD}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yk-")))
        folder.mkdir(exist_ok=True)
        try:
            results = asyncio.run(run(chosen, folder, seed))
        except (CannotMeasure, ModelyardError) as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 2
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report(results, seed, chosen.engine), indent=1) + "\n")
    totals = counts_of(answer for result in results for row in result.rows for answer in row.answers)
    problems = [problem for result in results for row in result.rows for problem in row.problems]
    problems += [problem for result in results for problem in result.journal.problems]
    print(f"{sum(totals.values())} requests: " + ", ".join(f"{totals[one]} {one}" for one in VERDICTS))
    print("all as promised" if not problems else f"{len(problems)} broken promises", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
