"""A whole yard under load, each of its processes killed, by benchmarks.kills of the checkout."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from modelyard.selftest.asking import VERDICTS
from modelyard.selftest.bench import Bench
from modelyard.selftest.checkout import benchmark
from modelyard.selftest.outcome import Outcome, Tally, quantile
from modelyard.selftest.row import Row

_SOURCES = ("yard", "control", "node", "gateway", "testing/fake_engine.py", "engines/fake.py", "benchmarks/kills.py")


def campaign(*targets: str, share: float, engine: str = "fake") -> Callable[[Bench], Awaitable[Outcome]]:
    """A row's `run`. Each of the targets is to be killed `share` times as often as the row says: a target may be played
    with one and with two replicas, and what is called "engine stopped" is done for a fifth of what is asked for."""

    async def run(bench: Bench) -> Outcome:
        kills = str(math.ceil(bench.size * share))
        only = [word for target in targets for word in ("--only", target)]
        found = await benchmark("kills", "--engine", engine, "--kills", kills, "--seed", str(bench.seed), *only)
        tally = Tally()
        for scene in found["scenes"]:
            for problem in scene["journal"]["problems"]:
                tally.wrong(f"journal: {problem}")
            tally.saw("journal records", scene["journal"]["records"])
            replicas = scene["scene"]["replicas"]
            for row in scene["rows"]:
                _note(row, f"{row['target']}, {replicas} replica{'s' if replicas > 1 else ''}", tally)
        return tally.outcome()

    return run


def _note(row: Any, where: str, tally: Tally) -> None:
    tally.tried(row["kills"])
    tally.saw(f"kills of {where}", row["kills"])
    tally.saw("in flight at kills", row["in_flight_at_kills"])
    for verdict in VERDICTS:
        tally.saw(verdict, row.get(verdict, 0))
    for problem in row["problems"]:
        tally.wrong(f"{where}: {problem}")
    for name, seconds in row["times_s"].items():
        tally.figure(f"{where}: {name}, p50", quantile(seconds, 0.5), "s")
        tally.figure(f"{where}: {name}, slowest", max(seconds), "s")


ENGINES = Row(
    key="9",
    name="an engine is killed under load",
    claim="Requests of which nothing was sent are answered or told 503 with Retry-After; streams under way end in an "
    "error event, never in [DONE]; the replica is ready again within its load time + 5 s; the journal tells the same.",
    unit="kills",
    full=200,
    short=0,
    run=campaign("engine", "shim", share=1 / 3),
    sources=_SOURCES,
    takes_s=900,
    limit_s=5400,
)
REAL_ENGINES = Row(
    key="9-real",
    name="a real engine is killed under load",
    claim=ENGINES.claim,
    unit="kills",
    full=20,
    short=0,
    run=campaign("engine", share=1, engine="real"),
    sources=(*_SOURCES, "programs"),
    takes_s=600,
    limit_s=3600,
)
STOPPED = Row(
    key="11",
    name="an engine is stopped: alive, and silent",
    claim="It is found by its missing progress, killed and replaced within 60 s; no client waits beyond its deadline.",
    unit="stops",
    full=50,
    short=0,
    run=campaign("engine stopped", share=5),
    sources=_SOURCES,
    takes_s=2400,
    limit_s=7200,
)
CONTROL = Row(
    key="15",
    name="control is killed under load",
    claim="No request fails, every engine is the same process as before, adopted within 5 s; none is doubled or lost.",
    unit="kills",
    full=100,
    short=0,
    run=campaign("control", "engine, then control", share=1 / 2),
    sources=_SOURCES,
    takes_s=600,
    limit_s=3600,
)
YARD = Row(
    key="16",
    name="the yard is killed under load",
    claim="After 5 s no process, port or socket of it is left, and the same start serves again, also when it comes "
    "before they are over, and when it is killed again while it starts.",
    unit="kills",
    full=51,
    short=0,
    run=campaign("yard", "yard, started at once", "yard that starts", share=1 / 3),
    sources=_SOURCES,
    takes_s=1200,
    limit_s=5400,
)
ROWS = (ENGINES, REAL_ENGINES, STOPPED, CONTROL, YARD)
