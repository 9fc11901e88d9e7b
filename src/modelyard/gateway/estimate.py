"""What a request may use, told before any tokenizer has seen it.

Rough on purpose: it only decides what is reserved, and what counts where the engine never states its usage. What is
settled is the engine's own count."""

from __future__ import annotations

from modelyard.gateway.accounts import Asked
from modelyard.gateway.fields import AnyCall, ChatCall
from modelyard.records.topology import Deployment

# Of the request's body, JSON around the text included. English prose has 4 to 5 bytes a token, so for it this is too
# much; source code and Chinese come near it; only text of rare scripts or numbers has less.
BYTES_PER_TOKEN = 3
# Where the client states no bound. A longer answer is settled as it was, and counts against what comes after it.
UNSTATED_ANSWER_TOKENS = 1024


def prompt_tokens(body_bytes: int) -> int:
    return -(-body_bytes // BYTES_PER_TOKEN)


def may_use(call: AnyCall, body_bytes: int, deployment: Deployment, at: float) -> Asked:
    """Prompt and longest answers, as tokens and at the deployment's prices."""
    prompt, answers = prompt_tokens(body_bytes), answer_tokens(call)
    if deployment.context_tokens:
        # No engine reads or writes more than its context in one answer, whatever was asked for.
        prompt = min(prompt, deployment.context_tokens)
        answers = min(answers, deployment.context_tokens)
    answers *= call.n or 1
    prices = deployment.policy.prices
    cost = 0 if prices is None else prices.cost_pico(prompt, 0, answers)
    return Asked(prompt + answers, cost, at)


def answer_tokens(call: AnyCall) -> int:
    """The longest one answer that was asked for."""
    stated = call.max_tokens
    if isinstance(call, ChatCall) and call.max_completion_tokens is not None:
        stated = max(stated or 0, call.max_completion_tokens)
    return UNSTATED_ANSWER_TOKENS if stated is None else stated
