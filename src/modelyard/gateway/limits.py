"""Every bound that the gateway puts on what reaches it. One place, so that the reference can list them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bytes, counts and receipt deadlines of one client connection."""

    head_bytes: int = 16 * 1024
    header_fields: int = 100
    body_bytes: int = 8 * 1024 * 1024
    framing_bytes: int = 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    least_bytes_per_s: int = 1024
    rate_window_s: float = 10.0
    idle_timeout_s: float = 75.0
    linger_s: float = 2.0
    write_buffer_bytes: int = 64 * 1024
    unsent_bytes: int = 128 * 1024
    connections: int = 8192
    connections_per_address: int = 1024
    upstream_idle_s: float = 2.0
    upstream_connect_timeout_s: float = 5.0
    upstream_body_bytes: int = 64 * 1024 * 1024
    upstream_event_bytes: int = 4 * 1024 * 1024
    upstream_early_heads: int = 8
    kept_stream_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FieldLimits:
    """Bounds on what a request may ask for; beyond them it is refused, naming the field."""

    json_depth: int = 64
    json_values: int = 150_000
    json_keys: int = 50_000
    string_characters: int = 4 * 1024 * 1024
    messages: int = 4096
    choices: int = 8
    top_logprobs: int = 20
    logit_bias: int = 1024
    stop_strings: int = 16
    stop_characters: int = 256
    tools: int = 128
    schema_bytes: int = 64 * 1024
    schema_depth: int = 16
    pattern_characters: int = 512
    prompt_tokens: int = 131_072
    max_tokens: int = 1_048_576
    inputs: int = 2048


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Who waits at a deployment's door, and for how long, beside what its deployment file says.

    `passes`: a lower priority gets a seat after so many went to higher ones. `guaranteed_part`: of the places in the
    queue, what a priority has against the others. `standing_s`: a queue that was not empty for so long is no burst.
    `least_part`: so many, as a part of the seats, may wait even then. `active_s`: a key counts as active for so long
    after its last request. `lately_s`: what a key held at once is remembered for so long, and up to twice that.
    `retry_after_most_s` bounds what clients are told."""

    passes: int = 8
    guaranteed_part: float = 1 / 8
    standing_s: float = 5.0
    least_part: float = 0.5
    active_s: float = 10.0
    lately_s: float = 30.0
    retry_after_most_s: int = 60


DOOR = DoorLimits()
WIRE = WireLimits()
FIELDS = FieldLimits()
