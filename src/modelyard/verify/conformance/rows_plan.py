"""What the plan itself must refuse, before anything is started."""

from __future__ import annotations

from msgspec.structs import replace

from modelyard.engines.contract import Engine
from modelyard.errors import CannotPlan
from modelyard.models.card import Card
from modelyard.planning.plan import plan
from modelyard.spec.deployment import Deployment, Limits
from modelyard.spec.sizes import ByteSize, show
from modelyard.verify.checks import Observation
from modelyard.verify.conformance.row import Row, Trial
from modelyard.verify.conformance.subject import UNHEARD_OF, Subject

_NOT_PLANNED = "the engine brings no numbers for its memory and no table of its settings"


def _unplanned(subject: Subject) -> str:
    return "" if subject.sized is not None else _NOT_PLANNED


async def _unknown_setting(trial: Trial) -> Observation:
    deployment = trial.subject.deployment
    refusal = _refusal(trial.subject, replace(deployment, settings={**deployment.settings, UNHEARD_OF: 1}))
    return Observation(
        f"no plan, and {UNHEARD_OF} is named", refusal or "a plan", refusal is not None and UNHEARD_OF in refusal
    )


async def _too_large(trial: Trial) -> Observation:
    """Half of the weights' own size is too little, however an engine holds them."""
    card = _card(trial.subject)
    memory = ByteSize(max(1, card.total_weight_bytes // 2))
    refusal = _refusal(trial.subject, replace(trial.subject.deployment, limits=Limits(memory=memory)))
    return Observation(
        f"no plan in {show(memory)} for {show(card.total_weight_bytes)} of weights, and the number is named",
        refusal or "a plan",
        refusal is not None and show(memory) in refusal,
    )


def _refusal(subject: Subject, deployment: Deployment) -> str | None:
    """What the plan of `deployment` is refused with; None where there is a plan."""
    engines: tuple[Engine, ...] = (subject.engine,)
    try:
        plan(deployment, subject.replica.artifact, subject.card, subject.machine, engines)
    except CannotPlan as error:
        return f"{error.message} (try: {error.hint})"
    return None


def _card(subject: Subject) -> Card:
    assert subject.sized is not None  # otherwise unclaimed
    return subject.sized[1]


PLAN_ROWS = (
    Row(
        "unknown-setting",
        "a setting that the engine does not have is refused by the plan",
        "CannotPlan that names the setting",
        "the adapter's `settings` lets names pass that it does not know",
        _unknown_setting,
        unclaimed=_unplanned,
    ),
    Row(
        "too-large",
        "a model that does not fit is refused by the plan",
        "CannotPlan with the number that does not fit",
        "the adapter's `footprint` says less than the weights take",
        _too_large,
        unclaimed=_unplanned,
    ),
)
