"""Knowledge probes: questions whose right answer the undamaged model gives by a wide margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelyard.verify.checks import Check, Observation
from modelyard.verify.replica import CHAT, COMPLETION, Replica, quoted

# A sentence; a completion's prompt is the beginning of the answer, so that the rest comes first.
CHAT_TOKENS, COMPLETION_TOKENS = 24, 8
NONE_KNOWN = "this model has no knowledge probes; its answers are not judged"


@dataclass(frozen=True, slots=True)
class Probe:
    """`expected` is a substring of the right answer. `margin` is the smallest difference, along that answer, between
    the probability of the right token and of the next best one in the parent model: rounding does not flip a wide one.
    Probes are ours, never a user's data: their answers are kept in the evidence."""

    kind: Literal["chat", "completion"]
    prompt: str
    expected: str
    margin: float


def check_of(number: int, probe: Probe) -> Check:
    """The check that asks `probe`; probes are numbered from 1."""

    async def run(replica: Replica) -> Observation:
        if probe.kind == "chat":
            output = await replica.chat(probe.prompt, CHAT_TOKENS)
        else:
            output = await replica.complete(probe.prompt, COMPLETION_TOKENS)
        return Observation(f"contains {quoted(probe.expected)}", quoted(output.text), probe.expected in output.text)

    return Check(
        f"knowledge-{number}",
        f"the model still answers {quoted(probe.prompt)}",
        f"the answer contains {quoted(probe.expected)} (margin in the parent model {probe.margin:.2f})",
        "the weights or their quantisation are damaged: verify the file's hash, then try a finer quantisation",
        run,
        endpoint=CHAT if probe.kind == "chat" else COMPLETION,
        knowledge=True,
    )
