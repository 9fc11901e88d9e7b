"""Which accelerators each replica gets, and how much of their memory it may take: whole ones, for itself alone."""

from __future__ import annotations

from collections.abc import Iterable

from modelyard.engines.hosting import Devices
from modelyard.errors import CannotPlan
from modelyard.hardware.accelerator import Accelerator
from modelyard.planning.memory import Budget
from modelyard.records.plan import Plan
from modelyard.spec.deployment import Deployment
from modelyard.spec.sizes import show


def shared_out(deployment: Deployment, devices: Devices, ranks: int) -> tuple[tuple[Accelerator, ...], ...]:
    """Those of each replica, one for every rank and all of one kind. Raises CannotPlan with the number that is."""
    wanted = deployment.replicas * ranks
    # Slices have identifiers of their own, which nobody asks the driver for yet.
    usable = [one for one in devices.accelerators if one.memory_bytes and not one.partition]
    kinds: dict[tuple[str, int | None, str], list[Accelerator]] = {}
    for one in usable:
        kinds.setdefault((one.name, one.memory_bytes, one.architecture), []).append(one)
    chosen = next((same for same in kinds.values() if len(same) >= wanted), None)
    if chosen is None:
        there = ", ".join(f"{len(same)} x {same[0].name}" for same in kinds.values())
        left_out = len(devices.accelerators) - len(usable)
        others = f" ({left_out} left out: slices, or without memory of their own)" if left_out else ""
        raise CannotPlan(
            f"{deployment.name}: {deployment.replicas} x {ranks} whole GPUs of one kind are needed, there are "
            f"{there or 'none'}{others}",
            hint="lower settings.tensor_parallel or replicas, or set MODELYARD_BUILD=cpu"
            if there
            else "set MODELYARD_BUILD=cpu to run on the processor",
        )
    return tuple(tuple(chosen[number * ranks : (number + 1) * ranks]) for number in range(deployment.replicas))


def budget_of(deployment: Deployment, own: tuple[Accelerator, ...], share: float) -> Budget:
    """Of one replica, over all its accelerators. What is free at the moment does not count: the replica that this plan
    replaces may hold the rest."""
    each = min(one.memory_bytes or 0 for one in own)
    whole, because = int(len(own) * each * share), f"{share:.0%} of {len(own)} x {own[0].name} with {show(each)}"
    if deployment.limits.memory is not None and deployment.limits.memory // deployment.replicas < whole:
        whole, because = int(deployment.limits.memory) // deployment.replicas, "limits.memory"
    return Budget(whole, because, kv_share=1.0)


def held(others: Iterable[Plan]) -> frozenset[tuple[str, int]]:
    """Build and index of every accelerator that other deployments were planned on."""
    replicas = (replica for other in others for replica in other.replicas)
    return frozenset((replica.build, index) for replica in replicas for index in replica.accelerators)
