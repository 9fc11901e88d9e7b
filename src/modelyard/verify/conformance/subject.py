"""What is tried: an engine as it is installed, the plan that it runs, and the same plan made wrong in one place."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from msgspec.structs import replace

from modelyard.engines.contract import Engine, Installed, LaunchSpec
from modelyard.engines.sizing import Room, Sized
from modelyard.hardware.machine import Machine
from modelyard.models.card import Card
from modelyard.models.catalogue import KnowledgeProbe
from modelyard.records.plan import Plan, ReplicaPlan, Setting
from modelyard.spec.deployment import Deployment

# No engine has it, and no spelling of it begins like a flag that some engine has.
UNHEARD_OF = "unheard_of_setting"
# Sets the limit and becomes the engine: what it allocates is refused from there on.
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
os.execvpe(sys.argv[2], sys.argv[2:], os.environ)
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """`plan` was made of `deployment`, and its first replica is what runs. `card` is None for formats without one."""

    engine: Engine
    install: Installed
    deployment: Deployment
    plan: Plan
    card: Card | None
    machine: Machine
    probes: tuple[KnowledgeProbe, ...] = ()

    @property
    def replica(self) -> ReplicaPlan:
        return self.plan.replicas[0]

    @property
    def sized(self) -> tuple[Sized, Card] | None:
        """The engine as one whose memory is planned, and the card that it is planned from; None where it is not."""
        return (self.engine, self.card) if isinstance(self.engine, Sized) and self.card is not None else None


def with_unheard_of(replica: ReplicaPlan) -> ReplicaPlan:
    """`replica` with a setting that no engine has, past every check of the plan: as a key, a flag and a property, for
    adapters hand on what is spelled like their engine's own."""
    names = (UNHEARD_OF, f"--{UNHEARD_OF.replace('_', '-')}", UNHEARD_OF.upper())
    more = tuple(Setting(name=name, value="1", reason="to be refused") for name in names)
    return replace(replica, settings=(*replica.settings, *more))


def with_kv_cache(subject: Subject, sized: Sized, kv_cache_bytes: int) -> ReplicaPlan:
    """The same replica as its engine would be told to run with so much KV cache."""
    replica = subject.replica
    room = Room(
        cores=subject.machine.cores,
        context_tokens=replica.context_tokens,
        max_sequences=replica.max_in_flight,
        kv_cache_bytes=kv_cache_bytes,
        hang_timeout_s=replica.hang_timeout_s,
        because={"kv_cache_bytes": "to be refused", "max_sequences": "as planned"},
        ranks=replica.ranks,
    )
    settings = sized.settings(room, subject.deployment.settings, replica.artifact.recommended)
    return replace(replica, settings=settings)


def limited(spec: LaunchSpec, data_bytes: int) -> LaunchSpec:
    """The same launch in which no process may have more than `data_bytes` of memory of its own (RLIMIT_DATA: heap and
    private mappings; files mapped for reading are free)."""
    return replace(spec, argv=(sys.executable, "-I", "-S", "-c", _LIMITED, str(data_bytes), *spec.argv))
