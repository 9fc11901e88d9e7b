"""What the gateway must know to route: a small file, replaced atomically, its generation only rising."""

from __future__ import annotations

from typing import Literal

from modelyard.records.base import Record


class Replica(Record):
    """One running engine. `address` is `unix:/path` or `http://host:port`; `launch` changes with every start.
    A draining replica gets no new request."""

    name: str
    launch: str
    address: str
    max_in_flight: int
    draining: bool = False


class Policy(Record):
    """How a deployment's requests are treated, as its operator wants it. `retry_after_s` is what clients are told where
    nothing better is known. In an overload that lasts, nobody is let in who would wait longer than `overload_wait_s`.
    `reserved_seats` is the part of the seats that only keys below their share may take while several are active."""

    retry_after_s: int = 2
    max_queued: int = 64
    queue_timeout_s: float = 30.0
    first_byte_timeout_s: float = 600.0
    stall_timeout_s: float = 300.0
    unknown_fields: Literal["strip", "refuse"] = "strip"
    max_queued_bytes: int = 64 * 1024 * 1024
    overload_wait_s: float = 2.0
    reserved_seats: float = 0.125


class Deployment(Record):
    """What is served under one public name. `engine_model` is the name that the engine itself answers to.
    While `open` is false nothing is routed and `reason` says why. `refused_fields` are request fields that the engine
    cannot honour: a request that sets one is told so."""

    name: str
    engine_model: str
    context_tokens: int
    created_at: int
    replicas: tuple[Replica, ...] = ()
    open: bool = False
    reason: str = ""
    refused_fields: tuple[str, ...] = ()
    policy: Policy = Policy()


class Topology(Record, tag_field="schema", tag="topology/v1"):
    generation: int
    deployments: tuple[Deployment, ...] = ()
