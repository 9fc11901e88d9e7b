"""From what a deployment file says of requests to what the gateway does with them."""

from __future__ import annotations

from msgspec.structs import asdict

from modelyard.records import topology
from modelyard.records.topology import Failover, Policy
from modelyard.spec.wanted import Deployment, Prices


def policy_of(deployment: Deployment) -> Policy:
    """How the deployment's requests are treated."""
    return Policy(
        max_queued=deployment.limits.max_queued,
        queue_timeout_s=deployment.limits.queue_timeout_s,
        max_queued_bytes=int(deployment.limits.queued_bytes or Policy().max_queued_bytes),
        overload_wait_s=deployment.limits.overload_wait_s,
        reserved_seats=deployment.limits.reserved_seats,
        adaptive_seats=deployment.limits.adaptive_seats,
        first_token_tolerance=deployment.limits.first_token_tolerance,
        first_byte_timeout_s=deployment.timeouts.first_byte_s,
        stall_timeout_s=deployment.timeouts.stall_s,
        unknown_fields=deployment.unknown_fields,
        failover=Failover(**asdict(deployment.failover)),
        forwarded_fields=deployment.fields.forward,
        stripped_fields=deployment.fields.strip,
        refused_fields=deployment.fields.refuse,
        salted=deployment.isolation != "shared",
        prices=_prices_of(deployment.prices) if deployment.prices is not None else None,
    )


def _prices_of(prices: Prices) -> topology.Prices:
    cached = prices.input if prices.cached_input is None else prices.cached_input
    return topology.Prices(
        currency=prices.currency,
        input_pico=int(prices.input),
        cached_input_pico=int(cached),
        output_pico=int(prices.output),
    )
