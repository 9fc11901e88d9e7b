"""What a request may use, told before any tokenizer has seen it.

Rough on purpose: it only decides what is reserved, and what counts where the engine never states its usage. What is
settled is the engine's own count."""

from __future__ import annotations

from modelyard.gateway.accounts import Asked
from modelyard.gateway.dialects.plain import PlainCall
from modelyard.gateway.fields import AnyCall, ChatCall
from modelyard.records.topology import Prices

# Of the request's body, JSON around the text included. English prose has 4 to 5 bytes a token, so for it this is too
# much; source code and Chinese come near it; only text of rare scripts or numbers has less.
BYTES_PER_TOKEN = 3
# Where the client states no bound. A longer answer is settled as it was, and counts against what comes after it.
UNSTATED_ANSWER_TOKENS = 1024


def prompt_tokens(body_bytes: int) -> int:
    return -(-body_bytes // BYTES_PER_TOKEN)


def estimated(call: AnyCall | PlainCall, body_bytes: int, context_tokens: int) -> tuple[int, int]:
    """Tokens of the prompt, and of the longest answers that were asked for. No engine reads or writes more than its
    context in one answer, whatever was asked for; 0 where that is not known."""
    prompt, answer = prompt_tokens(body_bytes), _answer_tokens(call)
    if context_tokens:
        # Plain comparisons: `min` costs three times as much, and this runs for every request.
        prompt = prompt if prompt < context_tokens else context_tokens
        answer = answer if answer < context_tokens else context_tokens
    return prompt, answer * (call.n or 1)


def may_use(prompt: int, answers: int, prices: Prices | None, at: float) -> Asked:
    """As a key's bounds count it: in tokens and at these prices."""
    cost = 0 if prices is None else prices.cost_pico(prompt, 0, answers)
    return Asked(prompt + answers, cost, at)


def _answer_tokens(call: AnyCall | PlainCall) -> int:
    """The longest one answer that was asked for: none, of what answers with vectors or scores."""
    if isinstance(call, PlainCall):
        return 0
    stated = call.max_tokens
    if isinstance(call, ChatCall) and call.max_completion_tokens is not None:
        stated = max(stated or 0, call.max_completion_tokens)
    return UNSTATED_ANSWER_TOKENS if stated is None else stated
