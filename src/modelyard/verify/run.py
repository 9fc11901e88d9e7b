"""Verification of one running replica: every claim that its engine makes, proved or refuted before the route opens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelyard.clock import Clock
from modelyard.engines.contract import Capabilities
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.records.evidence import Evidence
from modelyard.records.fingerprint import Fingerprint
from modelyard.verify.answers import WrongAnswer
from modelyard.verify.checks import FUNCTIONAL, Check, Observation
from modelyard.verify.probes import NONE_KNOWN, check_of
from modelyard.verify.replica import CHAT, Replica, Unreachable, connect
from modelyard.verify.report import Report, Skipped

VALID_S = 7 * 24 * 3600.0
DEADLINE_S = 30.0
# Enough to batch the probes, few enough not to queue behind each other on the smallest engine.
TOGETHER = 4
STOPPED_ANSWERING = "not asked: the replica had stopped answering"

Selection = Callable[[tuple[Check, ...]], tuple[Check, ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """A running replica of `deployment`. `address` is `unix:/path` or `http://host:port`, `model` the name that the
    engine itself answers to, `context_tokens` the longest prompt and answer together."""

    deployment: str
    address: str
    model: str
    capabilities: Capabilities
    context_tokens: int
    fingerprint: Fingerprint
    probes: tuple[KnowledgeProbe, ...] = ()


def checks_for(target: Target) -> tuple[Check, ...]:
    """Every check that applies to `target`: what its engine claims, and the probes that its model has."""
    return tuple(check for check in _all_checks(target) if not check.unclaimed(target.capabilities))


def required_checks(target: Target) -> frozenset[str]:
    """The names of the checks that must be green before a route to `target` opens."""
    return frozenset(check.name for check in checks_for(target))


def _everything(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    return checks


def _one_chat(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    known = tuple(check for check in checks if check.knowledge and check.endpoint == CHAT)
    return (known or checks)[:1]


EVERYTHING: Final[Selection] = _everything
# One chat question, with a known answer where there is one: enough where everything was proved before.
SMOKE: Final[Selection] = _one_chat


async def verify(
    target: Target,
    *,
    clock: Clock,
    on_result: Callable[[Evidence], None],
    only: Selection = EVERYTHING,
    deadline_s: float = DEADLINE_S,
) -> Report:
    """Ask the replica the `only` selected checks, each within `deadline_s`; `on_result` hears each outcome at once.

    A check that is not answered in time is red, and then nothing more is asked: a hung engine costs one deadline (or,
    where several checks run together, the deadline of those in flight). Never raises for what the replica does."""
    began = clock.monotonic()
    async with connect(target.address, target.model, target.context_tokens) as replica:
        run = _Run(target, replica, clock, on_result, deadline_s)
        await run.perform(only(checks_for(target)))
    return Report(
        deployment=target.deployment,
        evidence=tuple(run.evidence),
        skipped=(*(_unclaimed(target) if only is EVERYTHING else ()), *run.skipped),
        advice={check.name: check.advice for check in run.red},
        duration_s=clock.monotonic() - began,
    )


@dataclass(slots=True)
class _Run:
    target: Target
    replica: Replica
    clock: Clock
    on_result: Callable[[Evidence], None]
    deadline_s: float
    evidence: list[Evidence] = field(default_factory=list[Evidence])
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    red: list[Check] = field(default_factory=list[Check])
    silent: bool = False

    async def perform(self, checks: tuple[Check, ...]) -> None:
        for check in checks:
            if check.alone:
                await self._ask(check)
        places = asyncio.Semaphore(TOGETHER)
        async with asyncio.TaskGroup() as group:
            for check in checks:
                if not check.alone:
                    group.create_task(self._ask_with_others(check, places))

    async def _ask_with_others(self, check: Check, places: asyncio.Semaphore) -> None:
        async with places:
            await self._ask(check)

    async def _ask(self, check: Check) -> None:
        if self.silent:
            self.skipped.append(Skipped(check=check.name, reason=STOPPED_ANSWERING))
            return
        began = self.clock.monotonic()
        observation = await self._observe(check)
        evidence = self._evidence(check, observation, self.clock.monotonic() - began)
        if not observation.sound:
            self.red.append(check)
        self.evidence.append(evidence)
        self.on_result(evidence)

    async def _observe(self, check: Check) -> Observation:
        try:
            async with asyncio.timeout(self.deadline_s):
                return await check.run(self.replica)
        except TimeoutError:
            self.silent = True
            return Observation("an answer", f"no answer within {self.deadline_s:g} s", sound=False)
        except Unreachable as error:
            self.silent = True
            return Observation("an answer", error.message, sound=False)
        except WrongAnswer as error:
            return Observation("an answer in OpenAI's form", error.message, sound=False)

    def _evidence(self, check: Check, observation: Observation, duration_s: float) -> Evidence:
        now = self.clock.wall()
        return Evidence(
            deployment=self.target.deployment,
            check=check.name,
            claim=check.claim,
            bound=check.bound,
            predicted=observation.predicted,
            measured=observation.measured,
            verdict="green" if observation.sound else "red",
            command=f"modelyard verify {self.target.deployment}",
            at=now,
            expires_at=now + VALID_S,
            duration_s=duration_s,
            fingerprint=self.target.fingerprint,
        )


def _all_checks(target: Target) -> tuple[Check, ...]:
    return (*FUNCTIONAL, *(check_of(number, probe) for number, probe in enumerate(target.probes, 1)))


def _unclaimed(target: Target) -> list[Skipped]:
    """What was not asked because nobody claims it."""
    reasons = [(check.name, check.unclaimed(target.capabilities)) for check in _all_checks(target)]
    skipped = [Skipped(check=name, reason=reason) for name, reason in reasons if reason]
    return skipped if target.probes else [*skipped, Skipped(check="knowledge", reason=NONE_KNOWN)]
