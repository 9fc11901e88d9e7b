"""Endpoints beside chat and completions: asked where an engine claims to have them itself."""

from __future__ import annotations

from collections.abc import Callable

from modelyard.verify import dialect_answers as answers
from modelyard.verify.checks import COUNT, MORE_TOKENS, Observation
from modelyard.verify.conformance.row import Row, Trial
from modelyard.verify.conformance.subject import Subject
from modelyard.verify.dialect_answers import Told
from modelyard.verify.replica import Replica

MESSAGES, RESPONSES, TOKENIZE, DETOKENIZE = "/v1/messages", "/v1/responses", "/tokenize", "/detokenize"
_ASKED = [{"role": "user", "content": COUNT}]


async def _tokenize(trial: Trial) -> Observation:
    """What a request costs is known before it is sent."""
    replica = trial.running.replica
    told = await _of_chat(replica)
    counted = len(answers.tokens(*await replica.ask(TOKENIZE, {"messages": _ASKED})))
    plain = {"prompt": COUNT, "add_special_tokens": False}
    ids = answers.tokens(*await replica.ask(TOKENIZE, plain))
    text = answers.prompt(*await replica.ask(DETOKENIZE, {"tokens": ids}))
    return Observation(
        f"{told.input_tokens} tokens, as a chat's usage says; {COUNT!r} again",
        f"{counted} tokens; {text!r} of {len(ids)} tokens",
        counted == told.input_tokens and text.strip() == COUNT,
    )


async def _messages(trial: Trial) -> Observation:
    replica = trial.running.replica
    asked: dict[str, object] = {"messages": _ASKED, "max_tokens": MORE_TOKENS, "temperature": 0}
    whole = answers.message(*await replica.ask(MESSAGES, asked))
    streamed = answers.message_stream(*await replica.ask(MESSAGES, {**asked, "stream": True}))
    return _same(await _of_chat(replica), whole, streamed)


async def _responses(trial: Trial) -> Observation:
    replica = trial.running.replica
    asked: dict[str, object] = {"input": COUNT, "max_output_tokens": MORE_TOKENS, "temperature": 0, "store": False}
    whole = answers.response(*await replica.ask(RESPONSES, asked))
    streamed = answers.response_stream(*await replica.ask(RESPONSES, {**asked, "stream": True}))
    return _same(await _of_chat(replica), whole, streamed)


async def _of_chat(replica: Replica) -> Told:
    told = await replica.chat(COUNT, MORE_TOKENS)
    return Told(told.text, *((told.usage.prompt_tokens, told.usage.completion_tokens) if told.usage else (0, 0)))


def _same(chat: Told, whole: Told, streamed: Told) -> Observation:
    return Observation(f"{chat}, as of a chat, twice", f"{whole}; streamed {streamed}", chat == whole == streamed)


def _claimed(*endpoints: str) -> Callable[[Subject], str]:
    def unclaimed(subject: Subject) -> str:
        missing = sorted(set(endpoints) - subject.engine.capabilities.endpoints)
        return f"the engine does not claim {missing[0]}" if missing else ""

    return unclaimed


_SAME = "the text and the counts of the same question asked as a chat, whole and as a stream that ends as it must"
DIALECT_ROWS = (
    Row(
        "tokenize",
        "tokens are counted as they are charged",
        "a chat's tokens are counted as its usage says; a text comes back from its tokens",
        "count with the chat template that answers, generation prompt and all",
        _tokenize,
        unclaimed=_claimed(TOKENIZE, DETOKENIZE),
    ),
    Row(
        "messages",
        "it speaks Anthropic's messages itself",
        _SAME,
        "leave /v1/messages out of the adapter's endpoints: it is made of chat then",
        _messages,
        unclaimed=_claimed(MESSAGES),
    ),
    Row(
        "responses",
        "it speaks OpenAI's responses itself",
        _SAME,
        "leave /v1/responses out of the adapter's endpoints: it is made of chat then",
        _responses,
        unclaimed=_claimed(RESPONSES),
    ),
)
