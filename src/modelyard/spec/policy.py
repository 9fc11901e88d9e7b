"""From what a deployment file says of requests to what the gateway does with them."""

from __future__ import annotations

from modelyard.records.topology import Policy
from modelyard.spec.wanted import Deployment


def policy_of(deployment: Deployment) -> Policy:
    """How the deployment's requests are treated."""
    return Policy(
        max_queued=deployment.limits.max_queued,
        queue_timeout_s=deployment.limits.queue_timeout_s,
        first_byte_timeout_s=deployment.timeouts.first_byte_s,
        stall_timeout_s=deployment.timeouts.stall_s,
        unknown_fields=deployment.unknown_fields,
        forwarded_fields=deployment.fields.forward,
        stripped_fields=deployment.fields.strip,
        refused_fields=deployment.fields.refuse,
        salted=deployment.isolation != "shared",
    )
