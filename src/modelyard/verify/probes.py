"""Knowledge probes: questions whose right answer the undamaged model gives by a wide margin."""

from __future__ import annotations

from modelyard.models.catalogue import KnowledgeProbe
from modelyard.verify.answers import quoted
from modelyard.verify.checks import Check, Observation
from modelyard.verify.replica import CHAT, COMPLETION, Replica

# A sentence; a completion's prompt is the beginning of the answer, so that the rest comes first.
CHAT_TOKENS, COMPLETION_TOKENS = 24, 8
NONE_KNOWN = "this model has no knowledge probes; its answers are not judged"


def check_of(number: int, probe: KnowledgeProbe) -> Check:
    """The check that asks `probe`; probes are numbered from 1. They are ours, never a user's data: their answers are
    kept in the evidence."""

    async def run(replica: Replica) -> Observation:
        if probe.kind == "chat":
            output = await replica.chat(probe.prompt, CHAT_TOKENS)
        else:
            output = await replica.complete(probe.prompt, COMPLETION_TOKENS)
        return Observation(f"contains {quoted(probe.expected)}", quoted(output.text), probe.expected in output.text)

    return Check(
        f"knowledge-{number}",
        f"the model still answers {quoted(probe.prompt)}",
        f"the answer contains {quoted(probe.expected)} (margin {probe.margin:.2f} in F32)",
        "the weights or their quantisation are damaged: verify the file's hash, then try a finer quantisation",
        run,
        endpoint=CHAT if probe.kind == "chat" else COMPLETION,
        knowledge=True,
    )
