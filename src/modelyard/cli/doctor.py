"""`modelyard doctor`: what is here, what is missing, how to mend it, and what each engine could do."""

from __future__ import annotations

import math
import platform
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

import modelyard
from modelyard import __version__
from modelyard import settings as settings_module
from modelyard.cli.doctor_engines import EngineView, view
from modelyard.cli.doctor_setup import judge_index, judge_setup
from modelyard.cli.doctor_show import show
from modelyard.cli.doctor_state import judge_address, judge_state
from modelyard.cli.options import Json
from modelyard.cli.output import OUT, print_json
from modelyard.engines.contract import Installed
from modelyard.engines.registry import engines
from modelyard.errors import ModelyardError
from modelyard.hardware.builds import VENDOR_OF
from modelyard.hardware.details import Details, look
from modelyard.hardware.health import Process, judge
from modelyard.hardware.machine import Machine, probe
from modelyard.hardware.rates import Rates, load_rates
from modelyard.hardware.survey import survey
from modelyard.models.card import Card
from modelyard.models.catalogue import ENTRIES
from modelyard.models.reader import read_card
from modelyard.models.store import Store
from modelyard.node.environments import list_environments
from modelyard.node.measuring import measure
from modelyard.records.base import Record
from modelyard.records.finding import Finding, Severity
from modelyard.settings import Settings
from modelyard.spec.wanted import Gateway
from modelyard.state import StateDirectory, open_state

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_OLD_S = 30 * 86_400.0


class Report(Record, tag_field="schema", tag="doctor/v1"):
    """What `doctor --json` prints. `well` is false where a finding is an error: something prevents serving."""

    version: str
    python: str
    state: str
    well: bool
    machine: Machine
    details: Details
    rates: Rates | None
    engines: tuple[EngineView, ...]
    findings: tuple[Finding, ...]


def doctor(
    measure_now: Annotated[
        bool, typer.Option("--measure", help="Measure memory, kernels and layers now; takes less than a minute.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at this machine and its set-up: what is here, what is missing, how to mend it, what each engine could do.

    Nothing is installed or changed. Exit code 0 where all is well, 1 where something prevents serving."""
    settings = settings_module.load()
    report = examine(settings, measure_now=measure_now, quiet=json)
    if json:
        print_json(report)
    else:
        show(report.machine, report.details, report.rates, report.engines, report.findings, OUT)
    if not report.well:
        raise typer.Exit(1)


def examine(settings: Settings, *, measure_now: bool, quiet: bool) -> Report:
    """The whole report. The index and the vendors' tools, which may take their time, are asked beside each other."""
    state = StateDirectory(settings.state_dir)
    installed = _installed(state)
    with ThreadPoolExecutor(2) as pool:
        index = pool.submit(judge_index, settings, needed=not installed)
        found = survey()
        machine, details = probe(accelerators=found.accelerators), look(settings.state_dir)
        local = (
            *judge(machine, details, _process()),
            *found.findings,
            *judge_state(state),
            *judge_address(state, Gateway()),
            *judge_setup(settings),
        )
        findings = [*local, *index.result()]
    rates = load_rates(state, machine.fingerprint())
    if measure_now:
        rates, failed = _measured(settings, machine, details, quiet=quiet)
        findings += failed
    findings += _judge_rates(rates)
    card, unread = _packaged_card(state)
    findings += unread
    views = tuple(
        view(one, machine, platform.python_version(), installed, details.disk.free_bytes, card) for one in engines()
    )
    findings += _idle_accelerators(machine, views)
    findings.sort(key=lambda one: _ORDER.index(one.severity))
    return Report(
        version=__version__,
        python=platform.python_version(),
        state=str(settings.state_dir),
        well=not any(one.severity == "error" for one in findings),
        machine=machine,
        details=details,
        rates=rates,
        engines=views,
        findings=tuple(findings),
    )


def _measured(
    settings: Settings, machine: Machine, details: Details, *, quiet: bool
) -> tuple[Rates | None, tuple[Finding, ...]]:
    """What could be measured now; else what is known from before, and why it is not newer."""
    state = open_state(settings.state_dir)
    OUT.quiet = quiet
    try:
        with OUT.status("measuring") as status:
            rates = measure(state, machine, details, engines(), lambda what: status.update(f"measuring {what}"))
        return rates, () if load_rates(state, machine.fingerprint()) == rates else (_not_kept(),)
    except ModelyardError as error:
        failed = Finding(
            severity="warning",
            check="measurement",
            what=error.message,
            why="plans have no measured speed of this machine to go by, or an old one",
            remedy=error.hint,
        )
        return load_rates(state, machine.fingerprint()), (failed,)
    finally:
        OUT.quiet = False


def _not_kept() -> Finding:
    return Finding(
        severity="note",
        check="measurement",
        what="this measurement is not kept: an earlier one was taken in calm",
        why="plans go by what the machine can do, not by what its neighbours left of it today",
    )


def _judge_rates(rates: Rates | None) -> tuple[Finding, ...]:
    if rates is None:
        return (
            Finding(
                severity="note",
                check="measurement",
                what="this machine was not measured yet",
                why="how fast it reads memory and multiplies matrices decides how fast a model answers",
                remedy="modelyard doctor --measure",
            ),
        )
    doubts = rates.doubts()
    if not rates.engines:
        doubts = (*doubts, "no engine was installed, so no kernels were measured")
    if time.time() - rates.at > _OLD_S:
        doubts = (*doubts, f"it was measured {(time.time() - rates.at) / 86_400:.0f} days ago")
    if not doubts:
        return ()
    return (
        Finding(
            severity="note" if rates.engines and len(doubts) == 1 and not rates.doubts() else "warning",
            check="measurement",
            what="; ".join(doubts),
            why="the measured speed may not be the machine's own",
            remedy="when nothing else runs: modelyard doctor --measure",
        ),
    )


def _idle_accelerators(machine: Machine, views: tuple[EngineView, ...]) -> tuple[Finding, ...]:
    """Those that no engine would use, each once with the reasons that the engines gave."""
    used = {VENDOR_OF[one.build] for one in views if one.build in VENDOR_OF}
    idle = dict.fromkeys(one.name for one in machine.accelerators if one.vendor not in used)
    if not idle:
        return ()
    reasons = dict.fromkeys(
        f"{one.name}'s {other.what}: {other.reason}"
        for one in views
        for other in one.rejected
        if "is here" not in other.reason
    )
    return (
        Finding(
            severity="warning" if reasons else "note",
            check="accelerators",
            what=f"no engine would use {', '.join(idle)}",
            why="; ".join(reasons) or "none of the engines of this version has a build for it",
            remedy="follow what the reasons name; until then engines run on the processor" if reasons else "",
        ),
    )


def _installed(state: StateDirectory) -> tuple[Installed, ...]:
    return list_environments(state) if state.environments.is_dir() else ()


def _packaged_card(state: StateDirectory) -> tuple[Card | None, tuple[Finding, ...]]:
    """The card of a catalogue model that is here already; nothing is fetched for it."""
    store = Store(state)
    for artifact in store.stored() if state.store.is_dir() else ():
        path = store.path_of(artifact)
        if artifact.name not in ENTRIES or not path.exists():
            continue
        try:
            return read_card(path), ()
        except ModelyardError as error:
            damaged = Finding(
                severity="warning",
                check="models",
                what=error.message,
                why=f"{artifact.name} was fetched whole: something has written to it since, or the disk is failing",
                remedy=f"remove {path} and serve the model again: it is fetched anew",
            )
            return None, (damaged,)
    return None, ()


def _process() -> Process:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Process(
        # The gateway raises its own limit as far as it may.
        open_files=-1 if hard == resource.RLIM_INFINITY else hard,
        libc=platform.libc_ver()[0] or ("musl" if list(Path("/lib").glob("ld-musl-*")) else ""),
        now=time.time(),
        written_at=math.floor(Path(modelyard.__file__).stat().st_mtime),
    )
