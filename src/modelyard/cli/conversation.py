"""A conversation as values: what was said, what of it still fits, and how it is asked. Nothing here does I/O."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import msgspec

from modelyard.errors import UsageError
from modelyard.records.base import Record

# Until the engine has counted once: English takes about 4 characters a token, code and other languages fewer.
FIRST_CHARS_PER_TOKEN = 3.0
# What a chat template adds to each message (role, marks of beginning and end).
TEMPLATE_TOKENS = 8
# The count is an estimate until the engine has made it.
MARGIN = 1.1
DEFAULT_MAX_TOKENS = 512


class Exchange(Record):
    """A question and its answer, as far as it came."""

    question: str
    answer: str


class Conversation(Record, tag_field="schema", tag="conversation/v1"):
    """What `/save` writes. `settings` are fields of the request, by OpenAI's names."""

    deployment: str
    system: str = ""
    settings: dict[str, int | float] = msgspec.field(default_factory=dict[str, int | float])
    exchanges: tuple[Exchange, ...] = ()

    def after(self, question: str, answer: str) -> Conversation:
        return msgspec.structs.replace(self, exchanges=(*self.exchanges, Exchange(question=question, answer=answer)))

    def without_last(self) -> Conversation:
        return msgspec.structs.replace(self, exchanges=self.exchanges[:-1])

    def messages(self, question: str, *, left_out: int = 0) -> list[dict[str, str]]:
        """What is sent to ask `question`, without the oldest `left_out` exchanges; the system message always stays."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for one in self.exchanges[left_out:]:
            said += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
        return [*said, {"role": "user", "content": question}]


class _Bounds(Record):
    low: float
    high: float
    whole: bool = False


SETTINGS: dict[str, _Bounds] = {
    "temperature": _Bounds(low=0, high=2),
    "top_p": _Bounds(low=0, high=1),
    "max_tokens": _Bounds(low=1, high=1 << 20, whole=True),
    "seed": _Bounds(low=0, high=2**63 - 1, whole=True),
    "presence_penalty": _Bounds(low=-2, high=2),
    "frequency_penalty": _Bounds(low=-2, high=2),
}


def set_value(settings: dict[str, int | float], text: str) -> dict[str, int | float]:
    """`settings` after `name=value`; an empty value gives the name back to the deployment. Raises UsageError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if name not in SETTINGS:
        close = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(SETTINGS)}"
        raise UsageError(f"there is no setting {name!r}", hint=hint)
    if not equals:
        raise UsageError(f"{name} needs a value", hint=f"/set {name}=VALUE, or /set {name}= for the deployment's own")
    kept = {known: kept for known, kept in settings.items() if known != name}
    return {**kept, name: _number(name, value)} if value else kept


def _number(name: str, text: str) -> int | float:
    bounds = SETTINGS[name]
    kind = "a whole number" if bounds.whole else "a number"
    wanted = f"give {kind} from {bounds.low:g} to {bounds.high:g}"
    try:
        number = int(text) if bounds.whole else float(text)
    except ValueError:
        raise UsageError(f"{name} cannot be {text!r}", hint=wanted) from None
    if not bounds.low <= number <= bounds.high:
        raise UsageError(f"{name} cannot be {text}", hint=wanted)
    return number


class Measure(Record):
    """How many characters a token of this conversation takes; learnt from what the engine counted."""

    chars_per_token: float = FIRST_CHARS_PER_TOKEN

    def learnt(self, messages: Sequence[dict[str, str]], prompt_tokens: int) -> Measure:
        """After the engine counted `prompt_tokens` for `messages`."""
        chars = sum(len(message["content"]) for message in messages)
        text_tokens = prompt_tokens - TEMPLATE_TOKENS * len(messages)
        # A short text says little of the next one.
        if chars < 200 or text_tokens <= 0:
            return self
        return Measure(chars_per_token=chars / text_tokens)

    def tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """An estimate that is rather too high."""
        chars = sum(len(message["content"]) for message in messages)
        return round(MARGIN * chars / self.chars_per_token) + TEMPLATE_TOKENS * len(messages)


def to_leave_out(talk: Conversation, question: str, context_tokens: int, measure: Measure) -> int:
    """How many of the oldest exchanges must go so that prompt and answer fit; the question itself always stays."""
    room = context_tokens - int(talk.settings.get("max_tokens", DEFAULT_MAX_TOKENS))
    for left_out in range(len(talk.exchanges)):
        if measure.tokens(talk.messages(question, left_out=left_out)) <= room:
            return left_out
    return len(talk.exchanges)


def body(talk: Conversation, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The request, streamed and with its usage."""
    asked: dict[str, Any] = {"max_tokens": DEFAULT_MAX_TOKENS, **talk.settings}
    return {
        "model": talk.deployment,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **asked,
    }
