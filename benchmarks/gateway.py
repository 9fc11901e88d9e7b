"""What our gateway costs beside nginx and other gateways: the same requests, the same mock engine, one run, interleaved
rounds.

`python -m benchmarks.gateway` prints two tables and exits 0 where every budget holds, 1 where one is broken or an
answer or a journal record is wrong (it says which), 2 where something needed for measuring is absent. Every response
is compared with what the engine said, every stream byte for byte (what a peer says that encodes answers anew, by its
content); the counts of the engine and of the journal must equal what was sent.

`--peers vllm-router,smg,litellm` installs each of them into an environment of its own (benchmarks/peers.py says how it
is configured) and measures it in the same rounds. One that cannot be installed or started, or that answers a group of
requests wrongly, stands in the table with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run by path: the folder of this file stands where the repository should
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import gateway_table, peers, processes, subjects
from benchmarks.figures import Budget, Verdict, judge, rotated
from benchmarks.gateway_bench import Bench, Sizes
from benchmarks.gateway_rows import GROUPS, budgets
from benchmarks.jobs import LoadProcess, WrongResult
from benchmarks.subjects import CannotMeasure, Subject

SETTLE_S = 2.0


class Contest:
    """Everybody who is measured, and why some are not."""

    def __init__(self, bench: Bench, everyone: Sequence[Subject], absent: dict[str, str]) -> None:
        self.bench, self.everyone, self.absent = bench, everyone, absent
        self.missing = {(group, name): reason for name, reason in absent.items() for group in GROUPS}

    @property
    def names(self) -> list[str]:
        return [*(subject.name for subject in self.everyone), *self.absent]

    def run(self, groups: Sequence[str], rounds: int) -> None:
        by_name = {subject.name: subject for subject in self.everyone}
        for subject in self.everyone:
            self.bench.at_rest(subject)
            if subject.journal is not None:
                subject.journal.new_records()  # those of the wait for its readiness
        began = time.monotonic()
        for number in range(rounds):
            for group in groups:
                for name in rotated(list(by_name), number):
                    if (group, name) not in self.missing:
                        self._measure(group, by_name[name])
            print(f"round {number + 1} of {rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def _measure(self, group: str, subject: Subject) -> None:
        try:
            self.bench.measure(group, subject)
        except WrongResult as error:
            if subject.name not in peers.PEERS:
                raise
            # A peer that does not speak a group says so in the table; the others are measured on.
            self.bench.forget(subject, group)
            self.missing[group, subject.name] = str(error).removeprefix(f"{subject.name}: ")

    def verdicts(self, groups: Sequence[str]) -> tuple[list[Verdict], dict[Budget, str]]:
        """What is said about the gateway, and which budgets could not be judged, with the reason."""
        others = [name for name in self.names if name not in ("direct", "gateway")]
        found: list[Verdict] = []
        unjudged: dict[Budget, str] = {}
        for group in groups:
            for budget in budgets([group], others):
                if reason := self.missing.get((group, budget.against)):
                    unjudged[budget] = reason
                else:
                    found.append(judge(budget, self.bench.samples, "gateway"))
        return found, unjudged


def started(
    stack: contextlib.ExitStack, folder: Path, upstream: subjects.Upstream, chosen: argparse.Namespace
) -> tuple[list[Subject], dict[str, str]]:
    """Every subject, running, and the peers that do not run, with the reason."""
    everyone = [Subject("direct", upstream.url), stack.enter_context(subjects.nginx(folder, upstream))]
    if not chosen.without_gateway:
        everyone.append(stack.enter_context(subjects.our_gateway(folder, upstream.url)))
    everyone += [stack.enter_context(subjects.command(text, folder, upstream)) for text in chosen.subject]
    absent: dict[str, str] = {}
    for name in chosen.peers:
        try:
            everyone.append(stack.enter_context(peers.running(peers.PEERS[name], folder, upstream)))
        except CannotMeasure as error:
            absent[name] = str(error)
            print(f"{name} is not measured: {error}", file=sys.stderr, flush=True)
    return everyone, absent


def report(contest: Contest, found: Sequence[Verdict], unjudged: dict[Budget, str], facts: dict[str, object]) -> str:
    """What the JSON file says: enough to repeat the run and to judge it again."""
    content = {
        "schema": "benchmark-gateway/v2",
        "command": [sys.executable, *sys.argv],
        "at": time.time(),
        "machine": {
            "processor": processes.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        **facts,
        "sizes": asdict(contest.bench.sizes),
        "shares": {subject.name: subject.share for subject in contest.everyone},
        "peers": {name: peers.PEERS[name].configured for name in contest.names if name in peers.PEERS},
        "journal_records_counted": contest.bench.records_counted,
        "samples": contest.bench.samples,
        "missing": [{"group": g, "subject": name, "why": why} for (g, name), why in contest.missing.items()],
        "verdicts": [asdict(verdict) | {"within": verdict.within} for verdict in found],
        "unjudged": [asdict(budget) | {"why": why} for budget, why in unjudged.items()],
    }
    return json.dumps(content, indent=1) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="at least 5; the order rotates from round to round")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests: a smoke test, not evidence")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure only this group (repeatable)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    parser.add_argument("--peers", type=_peers, default=[], metavar="NAME,...", help=f"of {', '.join(peers.PEERS)}")
    parser.add_argument("--upstream-kind", choices=("unix", "tcp"),
                        help="how subjects reach the engine; tcp with --peers, who know nothing else")  # fmt: skip
    parser.add_argument("--subject", action="append", default=[], metavar="NAME=COMMAND",
                        help="another proxy beside ours; {port} {upstream} {model} {folder} are filled in")  # fmt: skip
    parser.add_argument("--without-gateway", action="store_true", help="measure only nginx and the others")
    chosen = parser.parse_args()
    if chosen.rounds < (2 if chosen.quick else 5):
        parser.error("--rounds: fewer than 5 rounds (2 with --quick) say nothing about the spread")
    if chosen.peers and chosen.upstream_kind == "unix":
        parser.error("--upstream-kind unix: no peer reaches an engine's unix socket")
    chosen.upstream_kind = chosen.upstream_kind or ("tcp" if chosen.peers else "unix")
    return chosen


def _peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in peers.PEERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(peers.PEERS)}")
    return names


def main() -> int:
    chosen = arguments()
    subjects.end_children_on_sigterm()
    groups = [group for group in GROUPS if not chosen.only or group in chosen.only]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-bench-")))
        try:
            upstream = stack.enter_context(subjects.mock_engine(folder, chosen.upstream_kind))
            everyone, absent = started(stack, folder, upstream, chosen)
            generator = LoadProcess("benchmarks.gateway_load", folder / "load.log")
            stack.callback(generator.end)
            contest = Contest(Bench(generator, upstream, Sizes.quick() if chosen.quick else Sizes()), everyone, absent)
            time.sleep(SETTLE_S)  # start-up work of theirs is neither memory at rest nor anybody's CPU
            neighbours = processes.Neighbours()
            contest.run(groups, chosen.rounds)
            foreign_cores = neighbours.cores_taken()
        except CannotMeasure as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 2
        except WrongResult as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
    print(gateway_table.medians(contest.bench.samples, groups, contest.names, contest.missing))
    found, unjudged = ([], {}) if chosen.without_gateway else contest.verdicts(groups)
    if found or unjudged:
        print("\n" + gateway_table.judgements(found, unjudged))
    if contest.bench.records_counted:
        print(f"\njournal: {contest.bench.records_counted} records, one for each request sent, warm-ups included")
    for name in (name for name in contest.names if name in peers.PEERS):
        print(f"{name}: {peers.PEERS[name].configured}")
    print(processes.note_on_neighbours(foreign_cores))
    if chosen.json is not None:
        facts: dict[str, object] = {
            "foreign_cores": foreign_cores,
            "rounds": chosen.rounds,
            "upstream": chosen.upstream_kind,
        }
        chosen.json.write_text(report(contest, found, unjudged, facts))
    return conclude(found, unjudged)


def conclude(found: Sequence[Verdict], unjudged: dict[Budget, str]) -> int:
    """The exit code; each broken budget and each that could not be judged is named."""
    broken = [verdict.budget for verdict in found if not verdict.within]
    open_ = [budget for budget in unjudged if budget.limit is not None]
    for words, budgets_ in (("broken", broken), ("not judged", open_)):
        for budget in budgets_:
            print(f"budget {words}: {budget.row} {budget.against}".rstrip(), file=sys.stderr)
    return 1 if broken else 2 if open_ else 0


if __name__ == "__main__":
    sys.exit(main())
