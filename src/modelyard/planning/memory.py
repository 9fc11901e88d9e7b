"""How the memory of a replica is divided: what must be there first, then KV cache for whole contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from modelyard.engines.sizing import Footprint
from modelyard.errors import CannotPlan
from modelyard.hardware.machine import Machine
from modelyard.records.plan import Rejected
from modelyard.spec.deployment import Deployment
from modelyard.spec.sizes import show

# yard, control and gateway together, and some air for the system: taken from the machine's memory, not from a limit
# that the operator sets for the engines.
RESERVED_BYTES = 256 << 20
# A planned context shorter than this serves nobody: the model is too large for the machine. A shorter one that was
# asked for gets the KV cache of this one, because engines refuse pools of a few blocks.
LEAST_CONTEXT_TOKENS = 256
# An unasked-for KV cache leaves the other half of the memory to file caches and to neighbours.
_KV_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that one replica may take, and in words what sets them; `kv_share` of them may be KV cache that
    nobody asked for."""

    bytes: int
    because: str
    kv_share: float = _KV_SHARE

    @staticmethod
    def of(deployment: Deployment, machine: Machine, claimed_bytes: int = 0) -> Budget:
        whole, because = machine.memory_bytes - RESERVED_BYTES - claimed_bytes, "this machine"
        if claimed_bytes:
            because += f" without the {show(claimed_bytes)} of other deployments"
        if deployment.limits.memory is not None and deployment.limits.memory < whole:
            whole, because = int(deployment.limits.memory), "limits.memory"
        if deployment.replicas > 1:
            because += f" for each of {deployment.replicas} replicas"
        return Budget(max(0, whole // deployment.replicas), because)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs in an engine; `asked_*` is None where the operator leaves it to us. `whole_contexts`: a
    sequence holds KV cache for a whole context, used or not, so that no more of them than fit can be served at once."""

    name: str
    model_context_tokens: int
    kv_bytes_per_token: int
    kv_block_tokens: int
    footprint: Callable[[int], Footprint]
    default_sequences: int
    whole_contexts: bool = False
    asked_context_tokens: int | None = None
    asked_sequences: int | None = None
    asked_kv_bytes: int | None = None
    ranks: int = 1
    default_because: str = "of 1, 4 and 8 requests at once, 8 gave the most tokens per second; more wait in the gateway"

    def kv_bytes(self, context_tokens: int) -> int:
        """Of one sequence of that length, in whole blocks."""
        blocks = -(-max(context_tokens, LEAST_CONTEXT_TOKENS) // self.kv_block_tokens)
        return blocks * self.kv_block_tokens * self.kv_bytes_per_token


@dataclass(frozen=True, slots=True)
class Division:
    context_tokens: int
    max_sequences: int
    kv_cache_bytes: int
    because: dict[str, str]
    rejected: tuple[Rejected, ...] = field(default=())


def divide(need: Need, budget: Budget) -> Division:
    """Context first, then concurrency, then memory for both. The most that the engine may take, KV cache included, is
    never more than the budget. Raises CannotPlan with the number that does not fit."""
    context_tokens, rejected = _context(need, budget)
    one_context = need.kv_bytes(context_tokens)
    room = budget.bytes - need.footprint(context_tokens).memory_high_bytes
    _check_room(need, budget, context_tokens, room)
    if need.asked_kv_bytes is not None:
        kv_bytes, why = need.asked_kv_bytes, "limits.kv_cache"
        sequences = need.asked_sequences or min(need.default_sequences, kv_bytes // one_context)
    elif need.asked_sequences is not None:
        sequences = need.asked_sequences
        kv_bytes, why = min(sequences * one_context, room), f"{sequences} requests of {context_tokens} tokens"
    else:
        share = max(one_context, min(room, int(budget.bytes * budget.kv_share)))
        sequences = min(need.default_sequences, share // one_context)
        kv_bytes, why = sequences * one_context, f"{sequences} requests of {context_tokens} tokens"
    whole_contexts = kv_bytes // one_context
    if whole_contexts < sequences:
        why += f"; {whole_contexts} of {sequences} requests can have a whole context at the same time"
    if need.whole_contexts:
        sequences = min(sequences, whole_contexts)
        kv_bytes = sequences * one_context
    because = {
        "kv_cache_bytes": f"{show(kv_bytes)}: {why}, {need.kv_bytes_per_token} bytes per token",
        "max_sequences": _why_sequences(need, sequences, whole_contexts),
    }
    return Division(context_tokens, sequences, kv_bytes, because, rejected)


def _context(need: Need, budget: Budget) -> tuple[int, tuple[Rejected, ...]]:
    """What was asked for or the model has; unasked-for, less where one whole context would not fit."""
    context_tokens = min(need.asked_context_tokens or need.model_context_tokens, need.model_context_tokens)
    rejected: tuple[Rejected, ...] = ()
    if need.asked_context_tokens is not None:
        if need.asked_context_tokens > context_tokens:
            reason = f"the model was trained for {need.model_context_tokens}"
            rejected = (Rejected(what=f"a context of {need.asked_context_tokens} tokens", reason=reason),)
        return context_tokens, rejected
    fitting = _longest_context(need, budget)
    if LEAST_CONTEXT_TOKENS <= fitting < context_tokens:
        reason = f"one needs more memory than {show(budget.bytes)} ({budget.because}); {fitting} tokens fit"
        return fitting, (Rejected(what=f"the model's context of {context_tokens} tokens", reason=reason),)
    return context_tokens, ()


def _longest_context(need: Need, budget: Budget) -> int:
    """Tokens of the longest context that fits once, by bisection: the footprint grows with the context too."""
    low, high = 0, need.model_context_tokens
    while low < high:
        middle = (low + high + 1) // 2
        one_context = need.kv_bytes(middle)
        kv_bytes = one_context if need.asked_kv_bytes is None else need.asked_kv_bytes
        fits = one_context <= kv_bytes <= budget.bytes - need.footprint(middle).memory_high_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _check_room(need: Need, budget: Budget, context_tokens: int, room: int) -> None:
    one_context = need.kv_bytes(context_tokens)
    kv_bytes = one_context if need.asked_kv_bytes is None else need.asked_kv_bytes
    fitting = _longest_context(need, budget)
    shorter = f"set limits.context_tokens to {fitting} or less" if fitting >= LEAST_CONTEXT_TOKENS else ""
    if kv_bytes < one_context:
        raise CannotPlan(
            f"{need.name}: one context of {context_tokens} tokens needs {show(one_context)} of KV cache, "
            f"limits.kv_cache is {show(kv_bytes)}",
            hint=" or ".join(filter(None, (f"raise limits.kv_cache to {show(one_context)}", shorter))),
        )
    if kv_bytes > room:
        asked = "lower limits.kv_cache" if need.asked_kv_bytes is not None else shorter
        raise CannotPlan(
            f"{need.name}: the model takes up to {show(budget.bytes - room)} and its KV cache {show(kv_bytes)}, "
            f"together more than {show(budget.bytes)} ({budget.because})",
            hint=asked or "use a smaller or more strongly quantised model, or a machine with more memory",
        )


def _why_sequences(need: Need, sequences: int, whole_contexts: int) -> str:
    if need.asked_sequences == sequences:
        return "limits.max_in_flight"
    if sequences == need.default_sequences:
        return need.default_because
    return f"the KV cache holds {whole_contexts} whole contexts: no request is dropped for lack of memory"
