"""The functional checks, as a table: what is claimed of a replica, what would refute it, and how to look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from modelyard.engines.contract import Capabilities
from modelyard.verify.answers import Output, Refusal, quoted
from modelyard.verify.replica import CHAT, COMPLETION, Endpoint, Replica

# Any model that follows a chat template answers this with more words than a check asks for.
COUNT = "Count from one to thirty in words."
COUNT_RAW = "one, two, three, four, five,"
FEW_TOKENS = 6
MORE_TOKENS = 16
# Engines keep a context in whole blocks, and may have so much more of it than they were asked for.
CONTEXT_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Observation:
    """`predicted` is what a sound replica shows, `measured` what this one showed."""

    predicted: str
    measured: str
    sound: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A claim about one replica. `bound` says in words what green needs, `advice` what to try when it is red.

    `endpoint` and `structured_output` name what the engine must claim for the check to be asked at all. A check that is
    `alone` runs while nothing else asks the replica: only then is temperature 0 reproducible."""

    name: str
    claim: str
    bound: str
    advice: str
    run: Callable[[Replica], Awaitable[Observation]]
    endpoint: Endpoint = CHAT
    structured_output: bool = False
    alone: bool = False
    knowledge: bool = False

    def unclaimed(self, capabilities: Capabilities) -> str:
        """Why this check is not asked of an engine with `capabilities`; empty where it is."""
        if self.endpoint not in capabilities.endpoints:
            return f"the engine does not claim {self.endpoint}"
        if self.structured_output and not capabilities.structured_output:
            return "the engine does not claim structured output"
        return ""


async def _chat(replica: Replica) -> Observation:
    return _some_text(await replica.chat(COUNT, FEW_TOKENS))


async def _completion(replica: Replica) -> Observation:
    return _some_text(await replica.complete(COUNT_RAW, FEW_TOKENS))


def _some_text(output: Output) -> Observation:
    return Observation("HTTP 200 with text, finish_reason and usage", str(output), bool(output.text.strip()))


async def _chat_stream(replica: Replica) -> Observation:
    await _fill_prefix_cache(replica)
    whole = await replica.chat(COUNT, MORE_TOKENS)
    return _same(whole, await replica.chat_stream(COUNT, MORE_TOKENS))


async def _completion_stream(replica: Replica) -> Observation:
    await replica.complete(COUNT_RAW, MORE_TOKENS)  # for the cache: see _fill_prefix_cache
    whole = await replica.complete(COUNT_RAW, MORE_TOKENS)
    return _same(whole, await replica.complete_stream(COUNT_RAW, MORE_TOKENS))


def _same(whole: Output, streamed: Output) -> Observation:
    return Observation(str(whole), str(streamed), whole == streamed and bool(whole.text))


async def _fill_prefix_cache(replica: Replica) -> None:
    """A cached prefix is computed in other batch shapes than a fresh one and may round differently: comparisons start
    from the same cache, so the very same call comes first."""
    await replica.chat(COUNT, MORE_TOKENS)


async def _stop(replica: Replica) -> Observation:
    """The stop string is cut out of the replica's own answer, across words and therefore across tokens: no assumption
    about what the model says."""
    await _fill_prefix_cache(replica)
    free = await replica.chat(COUNT, MORE_TOKENS)
    stop = stop_string(free.text)
    if not stop:
        return Observation("an answer long enough to be stopped", str(free), sound=False)
    before = free.text.partition(stop)[0]
    predicted = f"{quoted(before)}, finish_reason stop"
    for mode, ask in (("whole", replica.chat), ("streamed", replica.chat_stream)):
        output = await ask(COUNT, MORE_TOKENS, stop=[stop])
        if (output.text, output.finish_reason) != (before, "stop"):
            return Observation(predicted, f"{mode}, stop {quoted(stop)}: {output}", sound=False)
    return Observation(predicted, predicted, sound=True)


def stop_string(text: str) -> str:
    """Six characters of `text` that first occur as near to its middle as can be, and not at its beginning; empty where
    there are none. Small models repeat themselves: what stands in the middle may well have begun the answer."""
    length = 6
    firsts = {text.find(text[at : at + length]) for at in range(len(text) - length + 1)} - {0}
    if not firsts:
        return ""
    at = min(firsts, key=lambda first: abs(first - len(text) // 2))
    return text[at : at + length]


async def _max_tokens(replica: Replica) -> Observation:
    """The replica's own count could lie: the longer answer must really be longer."""
    short = await replica.chat(COUNT, FEW_TOKENS)
    long = await replica.chat(COUNT, MORE_TOKENS)
    counted = short.usage.completion_tokens if short.usage else 0
    return Observation(
        f"finish_reason length, at most {FEW_TOKENS} tokens, less text than with {MORE_TOKENS}",
        f"finish_reason {short.finish_reason}, {counted} tokens, {len(short.text)} and {len(long.text)} characters",
        short.finish_reason == "length" and 0 < counted <= FEW_TOKENS and len(short.text) < len(long.text),
    )


async def _usage(replica: Replica) -> Observation:
    whole = (await replica.chat(COUNT, FEW_TOKENS)).usage
    streamed = (await replica.chat_stream(COUNT, FEW_TOKENS)).usage
    longer = (await replica.chat(f"{COUNT} {COUNT_RAW}", 1)).usage
    assert whole is not None and longer is not None  # a whole answer without usage does not parse
    sums = whole.total_tokens == whole.prompt_tokens + whole.completion_tokens
    grows = longer.prompt_tokens > whole.prompt_tokens > 0
    return Observation(
        "prompt + completion = total, the same when streamed, more for a longer prompt",
        f"{whole}; streamed {streamed or 'none'}; longer prompt {longer.prompt_tokens}",
        sums and grows and whole.completion_tokens > 0 and streamed == whole,
    )


# Every value is bounded by the schema itself, so that a small model cannot ramble until the token limit; the prompt
# names none of the keys, so that only a constrained decoder finds them.
CITIES = ("Cairo", "London", "Tokyo")
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": CITIES}, "certain": {"type": "boolean"}},
    "required": ["city", "certain"],
    "additionalProperties": False,
}


async def _json_schema(replica: Replica) -> Observation:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    output = await replica.chat("Which city is the capital of Japan? Answer in JSON.", 96, response_format=form)
    return Observation(
        f"an object with city (one of {', '.join(CITIES)}) and certain (true or false), nothing else",
        str(output),
        _fits_schema(output.text),
    )


def _fits_schema(text: str) -> bool:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return (
        isinstance(value, dict)
        and value.keys() == {"city", "certain"}
        and value["city"] in CITIES
        and isinstance(value["certain"], bool)
    )


async def _unknown_model(replica: Replica) -> Observation:
    body = {"model": f"{replica.model}-unknown", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    return _refused(404, await replica.refusal(CHAT, msgspec.json.encode(body)))


async def _context(replica: Replica) -> Observation:
    """A word is at least one token: this prompt cannot fit, however the model spells it."""
    prompt = "one " * (replica.context_tokens + CONTEXT_BLOCK_TOKENS)
    body = {"model": replica.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
    return _refused(400, await replica.refusal(CHAT, msgspec.json.encode(body)))


async def _malformed(replica: Replica) -> Observation:
    return _refused(400, await replica.refusal(CHAT, b'{"model": "x", "messages": ['))


def _refused(status: int, refusal: Refusal) -> Observation:
    told = f"error of type {refusal.kind}: {quoted(refusal.message)}" if refusal.message else "no OpenAI error body"
    return Observation(
        f"HTTP {status} with an OpenAI error body",
        f"HTTP {refusal.status}, {told}",
        refusal.status == status and bool(refusal.message and refusal.kind),
    )


_LOGS = "read the engine's log: `modelyard logs`"
_PRECISION = "pin the engine's precision and batching settings, or choose another engine version"

FUNCTIONAL: tuple[Check, ...] = (
    Check("chat", "a chat question is answered", "HTTP 200, text not empty", _LOGS, _chat, alone=True),
    Check(
        "completion", "a raw prompt is continued", "HTTP 200, text not empty", _LOGS, _completion, endpoint=COMPLETION
    ),
    Check(
        "chat-stream",
        "a streamed chat answer is the whole answer",
        "same text, finish_reason and usage at temperature 0, alone; ends with [DONE]",
        _PRECISION,
        _chat_stream,
        alone=True,
    ),
    Check(
        "completion-stream",
        "a streamed continuation is the whole continuation",
        "same text, finish_reason and usage at temperature 0, alone; ends with [DONE]",
        _PRECISION,
        _completion_stream,
        endpoint=COMPLETION,
        alone=True,
    ),
    Check(
        "stop",
        "a stop string ends the answer and is not part of it",
        "exactly the text before it, finish_reason stop, whole and streamed",
        "clients that set `stop` would be served wrongly: choose another engine version",
        _stop,
        alone=True,
    ),
    Check(
        "max-tokens",
        "max_tokens is a limit",
        f"at most {FEW_TOKENS} tokens, finish_reason length",
        "budgets and queues rely on this limit: choose another engine version",
        _max_tokens,
        alone=True,
    ),
    Check(
        "usage",
        "token counts are consistent",
        "prompt + completion = total > 0, the same when streamed, growing with the prompt",
        "metering relies on these counts: choose another engine version",
        _usage,
        alone=True,
    ),
    Check(
        "json-schema",
        "a JSON schema is obeyed",
        "the answer parses and fits the schema",
        "install the engine's structured-output backend, or do not offer response_format",
        _json_schema,
        structured_output=True,
    ),
    Check("unknown-model", "an unknown model is refused", "HTTP 404 with an OpenAI error body", _LOGS, _unknown_model),
    Check(
        "context",
        "a prompt that exceeds the context is refused, not cut",
        "HTTP 400 with an OpenAI error body",
        "answers to silently shortened prompts are wrong answers: switch the engine's truncation off",
        _context,
        alone=True,
    ),
    Check("malformed-json", "a malformed request is refused", "HTTP 400 with an OpenAI error body", _LOGS, _malformed),
)
