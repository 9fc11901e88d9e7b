"""The data plane alone, in front of engines that something else keeps running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from modelyard.gateway.service import Service
from modelyard.records.keys import KeyCreated
from modelyard.records.secrets import key_record
from modelyard.records.topology import Deployment, Policy, Replica, Topology

# A foreign engine's context is unknown here; the engine itself refuses what does not fit.
UNKNOWN_CONTEXT = 0
# What every server that calls itself compatible with OpenAI's API has.
USUAL = ("/v1/chat/completions", "/v1/completions")


def fixed_topology(
    model: str, engine_model: str, upstreams: list[str], max_in_flight: int, endpoints: Sequence[str] = USUAL
) -> Topology:
    """One deployment, always open, with one replica for each upstream address. `endpoints` are those that the engines
    have: to ask them would start an inference, or be answered with whatever they think of an empty request."""
    replicas = tuple(
        Replica(name=f"upstream-{index}", launch="external", address=address.rstrip("/"), max_in_flight=max_in_flight)
        for index, address in enumerate(upstreams, 1)
    )
    deployment = Deployment(
        name=model,
        engine_model=engine_model,
        context_tokens=UNKNOWN_CONTEXT,
        created_at=int(time.time()),
        replicas=replicas,
        open=True,
        endpoints=tuple(dict.fromkeys(endpoints)),
        policy=Policy(max_queued=1024),
    )
    return Topology(generation=1, deployments=(deployment,))


def prepare(topology: Topology, secrets: list[str], upstream_key: str, service: Service) -> list[asyncio.Task[None]]:
    """Fill a service with what never changes. `upstream_key` is what the engines ask of us; it stands in no record."""
    for number, secret in enumerate(secrets, 1):
        service.worker.keyring.apply(KeyCreated(key=key_record(secret, f"key-{number}", time.time())))
    service.apply(topology)
    if upstream_key:
        for admission in service.worker.admissions.values():
            for seats in admission.seats.values():
                seats.pool.fields = b"authorization: Bearer %b\r\n" % upstream_key.encode()
    return []
