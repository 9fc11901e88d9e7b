"""Proving a replica before its route opens: what it is bound to, and whether what was proved before still holds."""

from __future__ import annotations

from modelyard.clock import Clock
from modelyard.control.steps import Steps
from modelyard.control.wanted import Wanted
from modelyard.engines.contract import Engine, Failure, LaunchSpec
from modelyard.hardware.machine import Machine
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint, sha256_of
from modelyard.records.plan import ReplicaPlan
from modelyard.state import StateDirectory
from modelyard.verify.evidence import latest, save, still_proved
from modelyard.verify.report import Report, explain
from modelyard.verify.run import EVERYTHING, SMOKE, Target, required_checks, verify


def fingerprint_of(wanted: Wanted, plan: ReplicaPlan, spec: LaunchSpec, machine: Machine) -> Fingerprint:
    """Everything that an answer of this replica depends on."""
    return Fingerprint(
        artifact=plan.artifact.sha256,
        engine=wanted.install.fingerprint,
        configuration=sha256_of(spec.effective),
        machine=machine.fingerprint(),
    )


async def prove(
    wanted: Wanted,
    plan: ReplicaPlan,
    engine: Engine,
    spec: LaunchSpec,
    *,
    state: StateDirectory,
    machine: Machine,
    clock: Clock,
    steps: Steps,
    afresh: bool = False,
) -> Report:
    """Check a running replica. Where valid evidence with the same fingerprint stands (and not `afresh`), one question
    with a known answer is enough; otherwise everything is asked, and what is found is kept."""
    target = Target(
        deployment=wanted.name,
        address=spec.address,
        model=plan.served_name,
        capabilities=engine.capabilities,
        context_tokens=plan.context_tokens,
        fingerprint=fingerprint_of(wanted, plan, spec, machine),
        probes=wanted.probes,
    )
    proved = still_proved(latest(state, wanted.name), required_checks(target), target.fingerprint, clock.wall())

    def heard(evidence: Evidence) -> None:
        ok = evidence.verdict == "green"
        steps.add("check", f"{evidence.check}: {evidence.claim}", replica=plan.name, ok=ok)

    if proved and not afresh:
        report = await verify(target, clock=clock, on_result=heard, only=SMOKE)
        if report.green:
            steps.add("proved", "proved before, unchanged; one question asked again", replica=plan.name)
            return report
    report = await verify(target, clock=clock, on_result=heard, only=EVERYTHING)
    save(state, report)
    summary = f"{len(report.evidence) - len(report.red)} of {len(report.evidence)} checks green"
    steps.add("proved", summary, replica=plan.name, ok=report.green)
    return report


def red_failure(report: Report) -> Failure:
    """Why the route stays closed, in a form that the replica's life understands."""
    return Failure(
        kind="unproved",
        cause="verification is red: " + ", ".join(one.check for one in report.red),
        fix="\n".join(explain(report)),
        permanent=True,
    )
