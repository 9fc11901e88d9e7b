"""What a door is told of a request before it is let in, and of its seat when that is given back."""

from __future__ import annotations

from typing import Literal

import msgspec


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """What a request may use at most of what bounds its key, where another worker keeps those accounts: to be reserved
    there together with its seat. `node` is the lowest of its line that bounds anything. `at` is the request's first
    byte in Unix seconds, `began` (monotonic seconds: one clock for all processes of a machine) when
    it was asked for."""

    request_id: str
    node: str
    tokens: int
    cost_pico: int
    at: float
    began: float


class Asking(msgspec.Struct, frozen=True):
    """What a door needs to know of a request. `key_id` is whose share it counts in: the node's at the top of the key's
    line. `tokens` is what it may cost: prompt, estimated, and the longest answer. A higher `priority` goes first;
    within one, shares are divided by `weight`. `size_bytes` is what it holds of our memory while it waits. `excluded`
    are replicas that have failed it already. `at_once`: it gets a seat of a sound replica now, or none. `again`: it had
    a seat before, and waits before the others of its key. `wanted` is what is to be reserved with the seat. `suspect`
    is the fingerprint of one that may have ended an engine, else empty.

    A frozen dataclass would take 1.2 µs to make, for every request; this takes 0.2."""

    key_id: str = ""
    priority: int = 0
    tokens: int = 0
    excluded: frozenset[str] = frozenset()
    weight: float = 1.0
    size_bytes: int = 0
    at_once: bool = False
    again: bool = False
    wanted: Wanted | None = None
    suspect: bytes = b""


class Result(msgspec.Struct, frozen=True):
    """What a seat's holder learned of the replica. Times count from when it was seated, 0 where it never came to it:
    `first_delta_s` to the first piece of a stream, `held_s` to the end. `tokens` is what it did cost, `prompt_tokens`
    those of them that the engine had to read before the first delta (not those from its prefix cache).
    "withdrawn" says nothing of the replica: the client left, or nothing was sent."""

    kind: Literal["answered", "failed", "withdrawn"]
    first_delta_s: float = 0.0
    tokens: int = 0
    held_s: float = 0.0
    prompt_tokens: int = 0


WITHDRAWN = Result("withdrawn")
