"""Three rows once more, with the packaged model on a real engine: each kill then costs a load of some seconds."""

from __future__ import annotations

import random
from typing import Any

from modelyard.selftest.asking import CHAT, ask
from modelyard.selftest.bench import MODEL, Bench, until
from modelyard.selftest.connection import chat
from modelyard.selftest.gateway_process import GatewayProcess
from modelyard.selftest.one_answer import Answer, read_answer
from modelyard.selftest.outcome import Outcome
from modelyard.selftest.real_engines import SEQUENCES, SOURCES, real_engines
from modelyard.selftest.row import CannotRun, Row
from modelyard.selftest.rows import gateway_killed, only_replica_killed, streams_resumed
from modelyard.selftest.rows.streams_resumed import COMPLETIONS, DEADLINE_S, Fleet, Manner, Question

KILLS = 20
LATE = 2
TOKENS = 64
PROMPTS = (
    "Tell me about rivers.",
    "Write a long list of words.",
    "Why do cats sleep so much?",
    "Describe a lighthouse in a storm.",
)


# An engine that goes on reads what it said as text; where that falls into other tokens, so many.
SEAM_TOKENS = 2


class _FollowedFleet(Fleet):
    """Each launch has an address of its own: until the gateway has heard of it, the replica is not there for it, and
    to kill the other one then would leave none that could go on."""

    async def kill(self, number: int) -> None:
        await super().kill(number)
        await until(lambda: self.is_streaming(number), DEADLINE_S, every_s=0.01)


async def only_replica(bench: Bench) -> Outcome:
    async with real_engines() as engines:
        return await only_replica_killed.kill_on(bench, engines, strike_s=(0.1, 1.5))


async def gateway(bench: Bench) -> Outcome:
    async with real_engines() as engines:
        return await gateway_killed.kill_before(bench, engines, streams=SEQUENCES - LATE, late=LATE)


async def resumed(bench: Bench) -> Outcome:
    replicas = 2
    async with real_engines(replicas) as engines:
        gateway = await bench.gateway()
        fleet = _FollowedFleet(gateway, engines)
        await fleet.start(replicas)
        await streams_resumed.served(gateway)
        known = await _uninterrupted(gateway)
        manner = Manner(
            replicas=replicas,
            streams=4,
            strike_s=(0.0, 1.0),
            draw=_question,
            wrong_with=lambda question, answer: _wrong_with(known[_prompt_of(question)], answer),
            is_equal=lambda question, answer: answer.text == known[_prompt_of(question)].text,
        )
        return await streams_resumed.kill_under(bench, gateway, fleet, manner)


async def _uninterrupted(gateway: GatewayProcess) -> dict[str, Answer]:
    """Each question's answer where nothing else is asked and nobody is killed."""
    known: dict[str, Answer] = {}
    for path in (CHAT, COMPLETIONS):
        for prompt in PROMPTS:
            question = _asking(path, prompt)
            asked = await ask(gateway, question.body, within_s=DEADLINE_S, path=path)
            records = {record.request_id: record for record in gateway.records()}
            record = records.get(asked.request_id)
            if asked.response is None or asked.response.status != 200 or record is None:
                raise CannotRun(f"the engine does not answer: {asked.detail}", hint="modelyard up smollm2 says more")
            billed = (record.prompt_tokens, record.completion_tokens)
            known[_prompt_of(question)] = read_answer(question.body, asked.response.body, billed)
    return known


def _question(rng: random.Random) -> Question:
    return _asking(rng.choice((CHAT, COMPLETIONS)), rng.choice(PROMPTS))


def _asking(path: str, prompt: str) -> Question:
    """Greedy, so that a text can be said twice."""
    more: dict[str, Any] = {"temperature": 0, "stream_options": {"include_usage": True}}
    if path == CHAT:
        return Question(chat(MODEL, stream=True, tokens=TOKENS, content=prompt, **more), path)
    return Question({"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "stream": True, **more}, path)


def _prompt_of(question: Question) -> str:
    body = question.body
    return f"{question.path} {body['messages'][0]['content'] if 'messages' in body else body['prompt']}"


def _wrong_with(uninterrupted: Answer, answer: Answer) -> str:
    """The text may differ, as it does between any two runs under load; what is billed may not, where it was cut at the
    same length, but by the tokens of a seam."""
    (prompt, _), (billed_prompt, billed) = uninterrupted.billed, answer.billed
    if abs(billed_prompt - prompt) > SEAM_TOKENS:
        return f"{billed_prompt} prompt tokens billed, {prompt} sent"
    if answer.finish_reason == "length" and billed != TOKENS:
        return f"{billed} tokens billed of an answer that was cut at {TOKENS}"
    return "" if len(answer.pieces) <= billed else f"{billed} tokens billed, {len(answer.pieces)} delivered"


ROWS = tuple(
    Row(
        key=f"{twin.key}-real",
        name=f"{name}, on a real engine",
        claim=claim,
        unit="kills",
        full=KILLS,
        short=0,
        run=run,
        sources=("gateway", *SOURCES),
        takes_s=takes_s,
    )
    for twin, name, claim, run, takes_s in (
        (
            only_replica_killed.ROW,
            "the only replica is killed",
            only_replica_killed.ROW.claim,
            only_replica,
            120,
        ),
        (
            gateway_killed.ROW,
            f"the gateway is killed with {SEQUENCES - LATE} streams",
            gateway_killed.ROW.claim,
            gateway,
            60,
        ),
        (
            streams_resumed.ROW,
            "replicas are killed in the middle of streams",
            f"{streams_resumed.ROW.claim} A prompt may be billed with {SEAM_TOKENS} tokens more or less, where what "
            "was said falls into other tokens when it is read.",
            resumed,
            180,
        ),
    )
)
