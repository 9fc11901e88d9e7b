"""What the admin API says of deployments: values that the command line reads back."""

from __future__ import annotations

from modelyard.control.steps import Step
from modelyard.records.base import Record
from modelyard.records.evidence import Evidence


class ReplicaView(Record, kw_only=True):
    """`cause`, `fix` and `tail` speak of the last launch that ended by itself."""

    name: str
    phase: str
    engine: str
    launch: str
    routed: bool
    progress: str
    fraction: float | None
    cause: str
    fix: str
    permanent: bool
    tail: tuple[str, ...]
    running_requests: float | None
    kv_used_ratio: float | None


class DeploymentView(Record, kw_only=True):
    """`debug_until` is when its debug window closes: Unix seconds, 0 where none is open."""

    name: str
    open: bool
    model: str
    artifact_sha256: str
    context_tokens: int
    replicas: tuple[ReplicaView, ...]
    evidence: tuple[Evidence, ...]
    steps: tuple[Step, ...]
    debug_until: float = 0.0


class DebugWindow(Record, kw_only=True):
    """Until then (Unix seconds) prompts and answers of a deployment are written down."""

    deployment: str
    until: float


class Reloaded(Record, kw_only=True):
    """The answer to a reload: what happens from now on stands after step number `after_step`."""

    name: str
    after_step: int
