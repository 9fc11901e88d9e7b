"""OpenAI's request and response shapes as a FakeEngine speaks them. Standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from http1 import BadRequest
from modelyard.testing import fake_answers, fake_defects
from modelyard.testing.fake_answers import Answer, is_list, is_object
from modelyard.testing.fake_knobs import Knobs

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Ask:
    """A request that can be served: what to answer (`answer`), and how the client wants it. The answer is the arguments
    of a call where `tool` names one; its first `thoughts` tokens are thoughts."""

    chat: bool
    model: str
    prompt: str
    prompt_tokens: int
    answer: Answer
    salt: str
    stream: bool
    include_usage: bool
    tool: str = ""
    thoughts: int = 0


def read_chat(body: bytes, knobs: Knobs) -> Ask:
    """The body of /v1/chat/completions. Raises BadRequest as OpenAI's API refuses."""
    fields = _fields(body, knobs)
    messages = fields.get("messages")
    if not is_list(messages) or not messages:
        raise BadRequest("'messages' is a list with at least one message", param="messages")
    texts = [_text_of(message) for message in messages]
    asked = [text for text, message in zip(texts, messages, strict=True) if message.get("role") == "user"]
    limit = _count(fields, "max_completion_tokens") or _count(fields, "max_tokens")
    fact = fake_answers.about_capitals(asked[-1]) if asked and knobs.facts else None
    begun = texts[-1] if fields.get("continue_final_message") and messages[-1].get("role") == "assistant" else ""
    tool, arguments = _call(fields, messages) if knobs.call_tools else ("", None)
    known = arguments or _structured(fields, knobs) or fact
    ask = _ask(fields, knobs, "\n".join(texts), known, limit, chat=True, begun=begun)
    return replace(ask, tool=tool, thoughts=0 if tool else knobs.thoughts)


def read_completion(body: bytes, knobs: Knobs) -> Ask:
    """The body of /v1/completions. Raises BadRequest as OpenAI's API refuses."""
    fields = _fields(body, knobs)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise BadRequest("'prompt' is a text", param="prompt")
    fact = fake_answers.after_prompt(prompt) if knobs.facts else None
    limit = _count(fields, "max_tokens") or DEFAULT_COMPLETION_TOKENS
    return _ask(fields, knobs, prompt, _structured(fields, knobs) or fact, limit, chat=False, begun=prompt)


def text_of(messages: list[Any]) -> str:
    """What the messages of a chat say, as its tokens are counted."""
    return "\n".join(_text_of(message) for message in messages)


def _ask(
    fields: Mapping[str, Any],
    knobs: Knobs,
    prompt: str,
    known: tuple[str, ...] | None,
    limit: int | None,
    *,
    chat: bool,
    begun: str,
) -> Ask:
    """`begun` ends with what has been said of the answer, if anything has."""
    prompt_tokens = max(1, len(prompt.split()))
    room = knobs.context_tokens - prompt_tokens
    if room < 1 and knobs.defect == "context":
        prompt_tokens, room = knobs.context_tokens - 1, 1
    if room < 1:
        message = f"the prompt has {prompt_tokens} tokens, the context holds {knobs.context_tokens}"
        raise BadRequest(message, param="messages" if chat else "prompt", code="context_length_exceeded")
    options = fields.get("stream_options")
    stream = bool(fields.get("stream"))
    pieces = known or fake_answers.words(knobs.tokens, fake_defects.stem(knobs.defect, knobs.stem))
    pieces = fake_answers.rest(pieces, begun)
    answer = fake_answers.cut(pieces, _stops(fields), min(room, limit or room))
    if knobs.defect:
        answer = fake_defects.answer(knobs.defect, answer, pieces, chat=chat, stream=stream, limit=limit)
    return Ask(
        chat=chat,
        model=fields["model"],
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        answer=answer,
        salt=str(fields.get("cache_salt") or ""),
        stream=stream,
        include_usage=is_object(options) and options.get("include_usage") is True,
    )


def _fields(body: bytes, knobs: Knobs) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        status = 500 if knobs.defect == "malformed-json" else 400
        raise BadRequest(f"the body is not JSON: {error}", status=status) from None
    if not is_object(fields):
        raise BadRequest("the body is not a JSON object")
    model = fields.get("model")
    if not isinstance(model, str):
        raise BadRequest("'model' is missing", param="model")
    if model != knobs.served_name and knobs.defect != "unknown-model":
        raise BadRequest(f"the model '{model}' does not exist", status=404, param="model", code="model_not_found")
    if fields.get("n", 1) not in (1, None):
        raise BadRequest("only n=1 is supported", param="n")
    return fields


def _text_of(message: Any) -> str:
    """A message's content: a text, or the text parts of a list of parts."""
    if not is_object(message):
        raise BadRequest("a message is an object with 'role' and 'content'", param="messages")
    content = message.get("content") or ""
    if is_list(content):
        return "".join(part["text"] for part in content if is_object(part) and isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise BadRequest("a message's content is a text or a list of parts", param="messages")
    return content


def _call(fields: Mapping[str, Any], messages: list[Any]) -> tuple[str, tuple[str, ...] | None]:
    """The tool to call and the tokens of its arguments; nothing where none is offered, or it was called already."""
    tools = fields.get("tools")
    if not is_list(tools) or not tools or fields.get("tool_choice") == "none" or messages[-1].get("role") == "tool":
        return "", None
    function = tools[0]["function"]
    return function["name"], fake_answers.as_json(fake_answers.instance(function.get("parameters", {"type": "object"})))


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BadRequest(f"'{name}' is a whole number of at least 1", param=name)
    return value


def _stops(fields: Mapping[str, Any]) -> list[str]:
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not is_list(stops) or not all(isinstance(text, str) for text in stops):
        raise BadRequest("'stop' is a text or a list of texts", param="stop")
    return stops


def _structured(fields: Mapping[str, Any], knobs: Knobs) -> tuple[str, ...] | None:
    """The tokens of the JSON that `response_format` asks for, None where it asks for text."""
    wanted = None if knobs.defect == "json-schema" else fields.get("response_format")
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return fake_answers.as_json({})
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            try:
                return fake_answers.as_json(fake_answers.instance(schema))
            except fake_answers.BadSchema as error:
                raise BadRequest(str(error), param="response_format") from None
        case _:
            raise BadRequest("unknown 'response_format'", param="response_format")


@dataclass(frozen=True)
class Shapes:
    """The JSON values of one response, whole or in chunks."""

    ask: Ask
    id: str
    cached_tokens: int
    created: int
    defect: str

    @classmethod
    def of(cls, ask: Ask, number: int, cached_tokens: int, defect: str) -> Shapes:
        return cls(ask, f"{'chatcmpl' if ask.chat else 'cmpl'}-{number}", cached_tokens, int(time.time()), defect)

    def whole(self, pieces: list[str]) -> dict[str, object]:
        content: dict[str, object] = {"message": self._message(pieces)} if self.ask.chat else {"text": "".join(pieces)}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self._finish_reason}
        kind = "chat.completion" if self.ask.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": self._usage()}

    def _message(self, pieces: list[str]) -> dict[str, object]:
        thought, text = "".join(pieces[: self.ask.thoughts]), "".join(pieces[self.ask.thoughts :])
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if self.ask.tool:
            function = {"name": self.ask.tool, "arguments": text}
            call = {"id": f"call-{self.id}", "type": "function", "function": function}
            return {**message, "content": None, "tool_calls": [call]}
        return {**message, "reasoning_content": thought} if thought else message

    @property
    def _finish_reason(self) -> str:
        reason = self.ask.answer.finish_reason
        return "tool_calls" if self.ask.tool and reason == "stop" else reason

    def opening(self) -> dict[str, object] | None:
        """The chunk before the first token: a chat names its role."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None) if self.ask.chat else None

    def piece(self, text: str, number: int) -> dict[str, object]:
        """The chunk of one token; `number` counts those before it."""
        if not self.ask.chat:
            return self._chunk({"text": text}, None)
        if self.ask.tool:
            function = {"arguments": text} if number else {"name": self.ask.tool, "arguments": text}
            named = {} if number else {"id": f"call-{self.id}", "type": "function"}
            return self._chunk({"delta": {"tool_calls": [{"index": 0, **named, "function": function}]}}, None)
        return self._chunk({"delta": {"reasoning_content" if number < self.ask.thoughts else "content": text}}, None)

    def closing(self) -> dict[str, object]:
        return self._chunk({"delta": {}} if self.ask.chat else {"text": ""}, self._finish_reason)

    def usage(self) -> dict[str, object]:
        """The chunk of its own, without choices, that `stream_options.include_usage` asks for."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": self._usage()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.ask.chat else "text_completion"

    def _chunk(self, content: dict[str, object], finish_reason: str | None) -> dict[str, object]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head(self._chunk_kind), "choices": [choice]}
        return {**chunk, "usage": None} if self.ask.include_usage else chunk

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": "fake",
        }

    def _usage(self) -> dict[str, object]:
        made = len(self.ask.answer.pieces)
        told: dict[str, object] = {
            "prompt_tokens": self.ask.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.ask.prompt_tokens + made + (self.defect == "usage"),
        }
        return told if self.defect == "cached-tokens" else {**told, "prompt_tokens_details": self._details()}

    def _details(self) -> dict[str, object]:
        return {"cached_tokens": self.cached_tokens}
