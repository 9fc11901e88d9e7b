"""What a key or a team may do, and whether that is more than those above it may."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from modelyard.errors import UsageError
from modelyard.records.keys import EVERYTHING, NO_BUDGET, UNLIMITED, Budgets, KeyRecord, Limits, Scopes
from modelyard.records.money import show_pico


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is left out is the parent's to say; the weight is that of the node at the top."""

    scopes: Scopes = EVERYTHING
    limits: Limits = UNLIMITED
    budgets: Budgets = NO_BUDGET
    priority: int | None = None
    weight: float = 1.0

    def on(self, key: KeyRecord) -> KeyRecord:
        """The key with these bounds."""
        return replace(
            key,
            scopes=self.scopes,
            limits=self.limits,
            budgets=self.budgets,
            priority=self.priority,
            weight=self.weight,
        )


NO_BOUNDS = Bounds()


def bounds_of(key: KeyRecord) -> Bounds:
    return Bounds(key.scopes, key.limits, key.budgets, key.priority, key.weight)


def check_within(bounds: Bounds, above: KeyRecord) -> None:
    """Raises UsageError where something with `bounds` below `above` would be given more than it."""
    for mine, theirs in (
        (bounds.scopes.deployments, above.scopes.deployments),
        (bounds.scopes.endpoints, above.scopes.endpoints),
    ):
        if theirs is not None and (mine is None or not set(mine) <= set(theirs)):
            raise UsageError(
                f"a key never reaches further than its parent: {above.title} reaches {', '.join(theirs) or 'nothing'}",
                hint="name fewer deployments or endpoints",
            )
    theirs = _numbers(bounds_of(above))
    for name, own in _numbers(bounds).items():
        most = theirs[name]
        if own is not None and most is not None and own > most:
            what, shown = name.replace("_", " "), (str(own), str(most))
            if name.startswith("pico"):
                what, shown = what.replace("pico ", "budget "), (show_pico(own), show_pico(most))
            raise UsageError(
                f"a key never has more than its parent: {shown[0]} {what}, where {above.title} has {shown[1]}",
                hint="give a smaller number, or leave it out: the parent's holds for it too",
            )


def _numbers(bounds: Bounds) -> dict[str, int | None]:
    stated = {"priority": bounds.priority}
    for record in (bounds.limits, bounds.budgets):
        stated |= {name: getattr(record, name) for name in record.__struct_fields__}
    return stated
