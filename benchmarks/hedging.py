"""First tokens with hedging off and on, where one of two replicas pauses now and then.

    python -m benchmarks.hedging [--rounds 5] [--seconds 12] [--rate 40] [--pauses 0.03] [--pause-s 1.0] [--share 0.02]

Two FakeEngines behind one gateway; before one of them a FaultProxy lets a share of the answers begin late. Requests
come at a rate, with Poisson's gaps, whatever becomes of those before them. Each round is a time without hedging and one
with it, in an order that rotates. Times are what the client saw, from the moment that it sent."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Neighbours, note_on_neighbours, processor
from modelyard.records.topology import Deployment, Failover
from modelyard.selftest.bench import Bench, deployment, replica
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.open_load import Ended, Offer, offered
from modelyard.selftest.outcome import quantile
from modelyard.state import open_state
from modelyard.testing import Fault, FaultProxy

TOKENS = 8
PREFILL_S, TOKEN_S = 0.04, 0.005
# The gateway reads the topology ten times a second.
TAKEN_IN_S = 0.5
QUANTILES = (0.5, 0.95, 0.99, 0.995)


@dataclass(frozen=True)
class Scene:
    rounds: int
    seconds: float
    rate: float
    pauses: float
    pause_s: float
    share: float
    seed: int


def parse_args() -> Scene:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each half of a round")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--pauses", type=float, default=0.03, help="share of one replica's answers that begin late")
    parser.add_argument("--pause-s", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=0.02, help="of all requests that may be hedged")
    parser.add_argument("--seed", type=int, default=1)
    return Scene(**vars(parser.parse_args()))


@dataclass(frozen=True)
class Measured:
    """The requests of all rounds without and with hedging. Of `hedgeable`, those of the time before the first round
    among them, `sent` were hedged; `won` of these hedges were faster."""

    off: list[Ended]
    on: list[Ended]
    hedgeable: int
    sent: int
    won: int
    cores_taken: float


async def measure(scene: Scene, folder: Path) -> Measured:
    found: dict[bool, list[Ended]] = {False: [], True: []}
    rng, neighbours = random.Random(scene.seed), Neighbours()
    async with Bench(open_state(folder), seed=scene.seed, size=1, short=False) as bench:
        engines = [await bench.engine(prefill_s=PREFILL_S, token_interval_s=TOKEN_S) for _ in range(2)]
        async with FaultProxy(engines[0].address) as proxy:
            await proxy.plan(Fault("latency", delay_s=scene.pause_s, share=scene.pauses), seed=scene.seed)
            off, on = (
                deployment(
                    replica(proxy.address, "pauses"),
                    replica(engines[1], "steady"),
                    failover=Failover(hedge_share=share),
                )
                for share in (0.0, scene.share)
            )
            gateway = await bench.gateway(on)
            # So that what is late is known before the first round.
            before = await _load(gateway, on, scene, rng)
            for number in range(scene.rounds):
                for is_on in (False, True) if number % 2 else (True, False):
                    found[is_on] += await _load(gateway, on if is_on else off, scene, rng)
            kinds = [tried.kind for record in gateway.records() for tried in record.tried]
            won, lost = kinds.count("outrun"), kinds.count("hedge_lost")
            taken = neighbours.cores_taken()
    return Measured(found[False], found[True], len(before) + len(found[True]), won + lost, won, taken)


async def _load(gateway: GatewayProcess, wanted: Deployment, scene: Scene, rng: random.Random) -> list[Ended]:
    gateway.publish(wanted)
    await asyncio.sleep(TAKEN_IN_S)
    [ended] = await offered(gateway, [Offer(gateway.key, scene.rate, TOKENS)], scene.seconds, rng)
    return ended


def report(measured: Measured) -> bool:
    """Prints the table. Whether every request was answered rightly."""
    print(f"| first token [ms] | {' | '.join(f'p{100 * one:g}' for one in QUANTILES)} | requests |")
    print("|---|" + "---|" * (len(QUANTILES) + 1))
    for name, ended in (("off", measured.off), ("on", measured.on)):
        times = [one.first_s for one in ended]
        cells = " | ".join(f"{1e3 * quantile(times, one):.0f}" for one in QUANTILES)
        print(f"| hedging {name} | {cells} | {len(ended)} |")
    part = 100 * measured.sent / max(1, measured.hedgeable)
    print(f"{measured.sent} hedges, {part:.2f} % of the requests while it was on; {measured.won} were faster")
    print(note_on_neighbours(measured.cores_taken))
    wrong = [one for one in measured.off + measured.on if not one.is_right]
    if wrong:
        print(f"error: {len(wrong)} requests were not answered rightly, the first with status {wrong[0].status}")
    return not wrong


def main() -> int:
    scene = parse_args()
    with tempfile.TemporaryDirectory(prefix="my-") as folder:
        measured = asyncio.run(measure(scene, Path(folder) / "state"))
    print(processor())
    return 0 if report(measured) else 1


if __name__ == "__main__":
    sys.exit(main())
