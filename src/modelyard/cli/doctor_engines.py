"""What each engine could do here: pure, from what the engines say of themselves."""

from __future__ import annotations

from collections.abc import Collection

from modelyard.engines.builds import builds
from modelyard.engines.contract import Engine, Installed
from modelyard.engines.hosting import suited_build
from modelyard.engines.sizing import Sized
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.records.base import Record
from modelyard.records.plan import Rejected
from modelyard.spec.sizes import show

# The context for which the memory of the packaged model is told.
_SHOWN_CONTEXT_TOKENS = 2048


class EngineView(Record):
    """`build` is the one that would be taken, None where none can; `reason` says why in words. `memory_bytes` is what
    it needs for the packaged model without its KV cache, None where that is unknown."""

    name: str
    version: str
    runs: bool
    build: str | None
    reason: str
    installed: bool
    download_bytes: int
    installed_bytes: int
    memory_bytes: int | None
    formats: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()
    remedy: str = ""


def view(
    engine: Engine, machine: Machine, python: str, installed: Collection[Installed], disk_bytes: int, card: Card | None
) -> EngineView:
    """`installed` are the environments that are whole, `disk_bytes` what is free for a new one, `card` the packaged
    model's where it is here."""
    fit = suited_build(engine, machine, python)
    needs = next((one for one in builds(engine) if one.build == fit.build), engine.requirements)
    same = ((one.engine, one.version, one.build) for one in installed)
    here = not needs.packages or (engine.name, needs.version, needs.build) in same
    takes = needs.installed_bytes + needs.download_bytes
    reason, runs, remedy = fit.reason, fit.build is not None, ""
    if runs and not here and disk_bytes < takes:
        runs, reason = False, f"its environment takes {show(takes)}, {show(disk_bytes)} are free"
        remedy = "free some space, or name a folder on a larger disk in MODELYARD_STATE"
    elif runs and not here:
        remedy = f"modelyard engines install {engine.name}"
    return EngineView(
        name=engine.name,
        version=needs.version,
        runs=runs,
        build=fit.build,
        reason=reason,
        installed=here,
        download_bytes=needs.download_bytes,
        installed_bytes=needs.installed_bytes,
        # What a build takes of the machine's own memory while it computes on accelerators is not known.
        memory_bytes=None if fit.accelerators else _memory_bytes(engine, card),
        formats=tuple(sorted(engine.capabilities.formats)),
        rejected=fit.rejected,
        remedy=remedy,
    )


def _memory_bytes(engine: Engine, card: Card | None) -> int | None:
    if card is None or not isinstance(engine, Sized) or card.format not in engine.capabilities.formats:
        return None
    if card.architecture not in engine.capabilities.architectures or engine.unfit(card) is not None:
        return None
    return engine.footprint(card, _SHOWN_CONTEXT_TOKENS).memory_bytes
