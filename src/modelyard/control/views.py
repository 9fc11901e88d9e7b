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
    name: str
    open: bool
    model: str
    artifact_sha256: str
    context_tokens: int
    replicas: tuple[ReplicaView, ...]
    evidence: tuple[Evidence, ...]
    steps: tuple[Step, ...]


class Reloaded(Record, kw_only=True):
    """The answer to a reload: what happens from now on stands after step number `after_step`."""

    name: str
    after_step: int
