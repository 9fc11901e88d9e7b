"""From running deployments to what the admin API says of them."""

from __future__ import annotations

from modelyard.control.fleet import Running
from modelyard.control.replica_loop import ReplicaLoop
from modelyard.control.views import DeploymentView, ReplicaView
from modelyard.records.evidence import Evidence


def of_deployment(
    running: Running, evidence: tuple[Evidence, ...], after_step: int, debug_until: float
) -> DeploymentView:
    first = running.wanted.plan.replicas[0]
    replicas = tuple(of_replica(loop) for loop in running.replicas.values())
    return DeploymentView(
        name=running.wanted.name,
        open=any(replica.routed for replica in replicas),
        model=first.artifact.name,
        artifact_sha256=first.artifact.sha256,
        context_tokens=first.context_tokens,
        replicas=replicas,
        evidence=evidence,
        steps=running.steps.after(after_step),
        debug_until=debug_until,
    )


def of_replica(loop: ReplicaLoop) -> ReplicaView:
    state, launch = loop.state, loop.launch
    metrics = launch.metrics if launch is not None else None
    failure = state.failure
    progress = state.progress if state.phase == "loading" else None
    return ReplicaView(
        name=loop.plan.name,
        phase=state.phase,
        engine=loop.plan.engine,
        launch=str(launch.number) if launch is not None else "",
        routed=state.routed,
        progress=progress.stage if progress is not None else "",
        fraction=progress.fraction if progress is not None else None,
        cause=failure.cause if failure is not None else "",
        fix=failure.fix if failure is not None else "",
        permanent=failure is not None and failure.permanent,
        tail=state.tail,
        running_requests=metrics.running if metrics is not None else None,
        kv_used_ratio=metrics.kv_used_ratio if metrics is not None else None,
    )
