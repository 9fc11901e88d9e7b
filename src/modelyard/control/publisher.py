"""The topology's only writer: what the gateway may use now, in a file that is replaced whole."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from modelyard.control.wanted import Wanted
from modelyard.engines.registry import engine as engine_named
from modelyard.records.base import UnreadableRecord, decode, encode
from modelyard.records.topology import Deployment, Replica, Topology
from modelyard.state import StateDirectory, write_atomically


class Publisher:
    """Begins with what the control before it had published: its engines may well be serving."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        before = self._read()
        self._generation = before.generation
        self._deployments = {one.name: one for one in before.deployments}

    def published(self, deployment: str, replica: str) -> Replica | None:
        """What stands in the topology now."""
        known = self._deployments.get(deployment)
        return next((one for one in known.replicas if one.name == replica), None) if known else None

    def want(self, wanted: Wanted) -> None:
        """Publish how a deployment's requests are treated; its replicas stay as they are."""
        first = wanted.plan.replicas[0]
        capabilities = engine_named(first.engine).capabilities
        known = self._deployments.get(wanted.name)
        before = known.replicas if known else ()
        # A hold ends with the control that held.
        kept = tuple(replace(one, draining=False) for one in before if self._is_planned(wanted, one))
        self._publish(
            Deployment(
                name=wanted.name,
                engine_model=first.served_name,
                context_tokens=first.context_tokens,
                created_at=wanted.created_at,
                replicas=kept,
                open=bool(kept),
                reason="" if kept else "it is starting",
                policy=wanted.policy,
                debug_until=known.debug_until if known else 0.0,
                refused_fields=tuple(sorted(capabilities.refused_fields)),
                ignored_fields=tuple(sorted(capabilities.ignored_fields)),
                cache_salt=capabilities.cache_salt,
                engine=first.engine,
                endpoints=tuple(sorted(capabilities.endpoints)),
                reasoning_field=capabilities.reasoning_field,
                continues_chat=capabilities.continues_chat,
            )
        )

    def route(self, deployment: str, replica: Replica) -> None:
        """Let requests go to a launch, in place of any other launch of the same replica."""
        known = self._deployments[deployment]
        others = tuple(one for one in known.replicas if one.name != replica.name)
        self._publish(replace(known, replicas=(*others, replica), open=True, reason=""))

    def unroute(self, deployment: str, replica: str, reason: str) -> None:
        """Let no new request go to a replica; those in flight keep their connections."""
        known = self._deployments.get(deployment)
        if known is None:
            return
        left = tuple(one for one in known.replicas if one.name != replica)
        self._publish(replace(known, replicas=left, open=bool(left), reason="" if left else reason))

    def hold(self, deployment: str, replica: str, *, held: bool) -> None:
        """Let the requests for a replica wait in the gateway, or go on; the route stays open."""
        known = self._deployments.get(deployment)
        if known is not None:
            replicas = tuple(replace(one, draining=held) if one.name == replica else one for one in known.replicas)
            self._publish(replace(known, replicas=replicas))

    def debug(self, deployment: str, until: float) -> None:
        """Have prompts and answers written down until then: Unix seconds, 0 ends it."""
        known = self._deployments.get(deployment)
        if known is not None:
            self._publish(replace(known, debug_until=until))

    def debug_until(self, deployment: str) -> float:
        known = self._deployments.get(deployment)
        return known.debug_until if known is not None else 0.0

    def explain(self, deployment: str, reason: str) -> None:
        """Tell clients of a closed route why; an open one needs no reason."""
        known = self._deployments.get(deployment)
        if known is not None and not known.open and known.reason != reason:
            self._publish(replace(known, reason=reason))

    def keep_only(self, names: Collection[str]) -> None:
        """Withdraw every deployment that is not among `names`."""
        for name in self._deployments.keys() - set(names):
            self.remove(name)

    def remove(self, deployment: str) -> None:
        if self._deployments.pop(deployment, None) is not None:
            self._write()

    def _is_planned(self, wanted: Wanted, replica: Replica) -> bool:
        return any(plan.name == replica.name for plan in wanted.plan.replicas)

    def _publish(self, deployment: Deployment) -> None:
        if self._deployments.get(deployment.name) != deployment:
            self._deployments[deployment.name] = deployment
            self._write()

    def _write(self) -> None:
        self._generation += 1
        topology = Topology(generation=self._generation, deployments=tuple(self._deployments.values()))
        write_atomically(self._state.topology, encode(topology))

    def _read(self) -> Topology:
        try:
            return decode(self._state.topology.read_bytes(), Topology)
        except (FileNotFoundError, UnreadableRecord):
            return Topology(generation=0)
