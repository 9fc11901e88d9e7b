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
    nothing better is known. `forwarded_fields` are request fields that we do not know and the engine does;
    `stripped_fields` are left out of what the engine is asked, and named in a header; `refused_fields` are refused.
    `salted`: prompts of different keys share no cached prefix, where the engine knows salts."""

    retry_after_s: int = 2
    max_queued: int = 64
    queue_timeout_s: float = 30.0
    first_byte_timeout_s: float = 600.0
    stall_timeout_s: float = 300.0
    unknown_fields: Literal["strip", "refuse"] = "strip"
    forwarded_fields: tuple[str, ...] = ()
    stripped_fields: tuple[str, ...] = ()
    refused_fields: tuple[str, ...] = ()
    salted: bool = True


class Deployment(Record):
    """What is served under one public name. `engine_model` is the name that the engine itself answers to.
    While `open` is false nothing is routed and `reason` says why. `refused_fields` are request fields that the engine
    cannot honour: a request that sets one is told so; `ignored_fields` are those that it would take and do nothing
    about. `cache_salt`: it keeps cached prefixes apart by a salt in the request."""

    name: str
    engine_model: str
    context_tokens: int
    created_at: int
    replicas: tuple[Replica, ...] = ()
    open: bool = False
    reason: str = ""
    refused_fields: tuple[str, ...] = ()
    ignored_fields: tuple[str, ...] = ()
    cache_salt: bool = False
    policy: Policy = Policy()


class Topology(Record, tag_field="schema", tag="topology/v1"):
    generation: int
    deployments: tuple[Deployment, ...] = ()
