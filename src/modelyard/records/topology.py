"""What the gateway must know to route: a small file, replaced atomically, its generation only rising."""

from __future__ import annotations

from functools import cached_property
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


class Failover(Record):
    """What happens when a replica fails a request. Until the first piece of an answer it is sent to another one: up to
    `sendings` in all, within `retry_share` of the deployment's requests and `retries_per_s` besides; after
    `first_token_s` too, while another one is free. After that, `on_broken_stream` says.

    A replica is taken out for `eject_s`, twice as long each time up to `eject_most_s`, after `eject_after` lost
    connections in a row, or when `eject_share` of at least `eject_volume` requests within ten seconds failed.

    A request that has ended an engine `poison_deaths` times is refused; with 0 none is.

    Up to `hedge_share` of the requests are sent to a second replica while the first one works on them: streams whose
    first token is late, with prompts of `hedge_prompt_tokens` at most."""

    sendings: int = 3
    retry_share: float = 0.1
    retries_per_s: float = 3.0
    first_token_s: float | None = None
    on_broken_stream: Literal["error", "resume"] = "error"
    eject_after: int = 5
    eject_share: float = 0.5
    eject_volume: int = 20
    eject_s: float = 1.0
    eject_most_s: float = 30.0
    poison_deaths: int = 2
    hedge_share: float = 0.0
    hedge_prompt_tokens: int = 512


class Prices(Record):
    """What tokens cost, in millionths of a millionth of `currency` for each: whole numbers, so that sums are exact.
    `cached_input_pico` is for prompt tokens that came from the engine's prefix cache."""

    currency: str
    input_pico: int
    cached_input_pico: int
    output_pico: int

    def cost_pico(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """`prompt_tokens` include the cached ones, as engines count them."""
        cached = min(cached_tokens, prompt_tokens)
        fresh = prompt_tokens - cached
        return fresh * self.input_pico + cached * self.cached_input_pico + completion_tokens * self.output_pico


class Policy(Record):
    """How a deployment's requests are treated, as its operator wants it. `retry_after_s` is what clients are told where
    nothing better is known. `forwarded_fields` are request fields that we do not know and the engine does;
    `stripped_fields` are left out of what the engine is asked, and named in a header; `refused_fields` are refused.
    `salted`: prompts of different keys share no cached prefix, where the engine knows salts. In an overload that lasts,
    nobody is let in who would wait longer than `overload_wait_s`. `reserved_seats` is the part of the seats that, at
    most, stays free for keys below their share while several are active. `adaptive_seats`: a replica is given fewer
    requests at once while its first tokens take more than `first_token_tolerance` times what is expected for their
    prompts."""

    retry_after_s: int = 2
    max_queued: int = 64
    queue_timeout_s: float = 30.0
    first_byte_timeout_s: float = 600.0
    stall_timeout_s: float = 300.0
    unknown_fields: Literal["strip", "refuse"] = "strip"
    failover: Failover = Failover()
    forwarded_fields: tuple[str, ...] = ()
    stripped_fields: tuple[str, ...] = ()
    refused_fields: tuple[str, ...] = ()
    salted: bool = True
    max_queued_bytes: int = 64 * 1024 * 1024
    overload_wait_s: float = 2.0
    reserved_seats: float = 0.25
    prices: Prices | None = None
    adaptive_seats: bool = True
    first_token_tolerance: float = 4.0


class Deployment(Record, dict=True):  # for what is derived once
    """What is served under one public name. `engine_model` is the name that the engine itself answers to.
    While `open` is false nothing is routed and `reason` says why. `refused_fields` are request fields that the engine
    cannot honour: a request that sets one is told so; `ignored_fields` are those that it would take and do nothing
    about. `cache_salt`: it keeps cached prefixes apart by a salt in the request. `engine` is its name; `endpoints` are
    those that it has itself; `reasoning_field` is what it calls a model's thoughts, where it tells them at all;
    `continues_chat`: it can go on with an answer that was begun. `debug_until`: until then (Unix seconds) what clients
    send and are sent is written down, in files of its own."""

    name: str
    engine_model: str
    context_tokens: int
    created_at: int
    replicas: tuple[Replica, ...] = ()
    open: bool = False
    reason: str = ""
    refused_fields: tuple[str, ...] = ()
    engine: str = ""
    endpoints: tuple[str, ...] = ("/v1/chat/completions", "/v1/completions")
    reasoning_field: Literal["", "reasoning", "reasoning_content"] = ""
    continues_chat: bool = False
    ignored_fields: tuple[str, ...] = ()
    cache_salt: bool = False
    debug_until: float = 0.0
    policy: Policy = Policy()

    @cached_property
    def unsent_fields(self) -> frozenset[str]:
        """All request fields that the engine is never sent."""
        policy = self.policy
        return frozenset((*self.refused_fields, *policy.refused_fields, *self.ignored_fields, *policy.stripped_fields))


class Topology(Record, tag_field="schema", tag="topology/v1"):
    generation: int
    deployments: tuple[Deployment, ...] = ()
