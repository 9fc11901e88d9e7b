"""Between OpenAI's wire format and llama-server's, as pure functions: what we send it, and what we make of its events.

llama-server speaks the format itself; its events pass as they came. What is changed, and why, in one place:

* Everything is asked as a stream with progress events. Where llama-server has nothing to write, in a long prefill and
  for a plain answer to its very end, it looks only once a second whether its client is still there; with an event for
  each batch it notices when that batch is computed. Progress events stay here, and a plain answer is put together.
* Only fields that we know are sent: it would obey dozens of its own (another slot, raw grammars, files).
* It ignores the model's name and several fields that ask for something, counts the tokens of one choice only where it
  gives several, answers log-probabilities of raw prompts in the form that belongs to chats, takes tools for a model
  whose template has no place for them, and calls one penalty otherwise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from http1 import BadRequest, error_body
from openai_wire import parse_object
from tokenize_wire import Count

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
DONE = b"[DONE]"

_SAMPLING = "temperature top_p top_k min_p seed presence_penalty frequency_penalty logit_bias ignore_eos"
_BOTH = f"max_tokens stop {_SAMPLING}"
_OF_TOOLS = "tools tool_choice parallel_tool_calls"
_OF_A_CHAT = f"messages max_completion_tokens response_format logprobs top_logprobs {_OF_TOOLS}"
_SENT = {CHAT: frozenset(f"{_BOTH} {_OF_A_CHAT}".split()), COMPLETION: frozenset(f"{_BOTH} prompt".split())}
_RENAMED = {"repetition_penalty": "repeat_penalty"}
# Name -> the values that ask for nothing.
_REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "prediction": (None,),
}
_TOOLS: dict[str, tuple[Any, ...]] = {"tools": (None, []), "tool_choice": (None, "none", "auto")}
_LOGPROBS: dict[str, tuple[Any, ...]] = {"logprobs": (None,)}
_PROGRESS, _USAGE, _ERROR = b'"prompt_progress":', b'"usage":', b'{"error":'
# Its seed is 32 bits wide, and the last value means "draw one".
_SEEDS = 2**32 - 1
_CODES = {"exceed_context_size_error": "context_length_exceeded"}


@dataclass(frozen=True)
class Ask:
    """One checked request. `body` is what llama-server gets, always a stream; the rest is how the client wants it."""

    path: str
    body: bytes
    stream: bool
    include_usage: bool


def parse_ask(body: bytes, path: str, served_name: str, *, tools: bool) -> Ask:
    """`tools`: the model's chat template has a place for them. Raises BadRequest with the status, message and `param`
    that OpenAI's clients expect."""
    fields = parse_object(body)
    model = fields.get("model")
    if not isinstance(model, str):
        raise BadRequest("you must provide a model parameter", param="model")
    if model != served_name:
        raise BadRequest(f"The model `{model}` does not exist.", status=404, param="model", code="model_not_found")
    _refuse(fields, _REFUSED_UNLESS, "is not supported by this server")
    if path == COMPLETION:
        _refuse(fields, _LOGPROBS, "is not supported for raw prompts; ask in a chat")
    if not tools:
        _refuse(fields, _TOOLS, "is not supported: this model's chat template has no place for tools")
    _refuse_media(fields.get("messages"))
    stream = fields.get("stream") or False
    if type(stream) is not bool:
        raise BadRequest("stream must be true or false", param="stream")
    sent = {name: value for name, value in fields.items() if name in _SENT[path] and value is not None}
    sent |= {theirs: fields[ours] for ours, theirs in _RENAMED.items() if fields.get(ours) is not None}
    if (seed := sent.get("seed")) is not None:
        if type(seed) is not int:
            raise BadRequest("seed must be an integer", param="seed")
        sent["seed"] = seed % _SEEDS
    sent |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    return Ask(path, json.dumps(sent).encode(), stream, _include_usage(fields.get("stream_options"), stream=stream))


def _refuse(fields: dict[str, Any], unless: dict[str, tuple[Any, ...]], why: str) -> None:
    for name, harmless in unless.items():
        # `True == 1`: a boolean must not pass for a number, nor the other way round.
        value = fields.get(name)
        if not any(value == allowed and type(value) is type(allowed) for allowed in harmless):
            raise BadRequest(f"{name} {why}", param=name, code="unsupported_parameter")


def _refuse_media(messages: Any) -> None:
    """Parts that are not text: it would fetch the address that one names, or fail as if it were its own fault."""
    for index, message in enumerate(cast("list[Any]", messages) if isinstance(messages, list) else []):
        content: Any = cast("dict[str, Any]", message).get("content") if isinstance(message, dict) else None
        parts = cast("list[Any]", content) if isinstance(content, list) else []
        if not all(isinstance(part, dict) and cast("dict[str, Any]", part).get("type") == "text" for part in parts):
            where = f"messages[{index}].content"
            raise BadRequest(f"{where} may hold only parts of type text", param=where)


def _include_usage(options: Any, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")
    wanted = cast("dict[str, Any]", options).get("include_usage") if isinstance(options, dict) else options
    if wanted is not None and type(wanted) is not bool:
        raise BadRequest("stream_options.include_usage must be true or false", param="stream_options")
    return bool(wanted)


# Text such as <|im_start|> is read as the token of that name, as in the prompts of answers.
TOKENIZE_FIELDS: dict[str, Any] = {"parse_special": True, "with_pieces": True}


def check_messages(messages: list[Any], tools: list[Any], *, tools_known: bool) -> None:
    """Raises BadRequest for what an answer to these messages would be refused for."""
    if tools and not tools_known:
        _refuse({"tools": tools}, _TOOLS, "is not supported: this model's chat template has no place for tools")
    _refuse_media(messages)


def template_fields(count: Count) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": count.messages, "add_generation_prompt": count.opening}
    return {**fields, "tools": count.tools} if count.tools else fields


def read_tokens(answer: dict[str, Any]) -> tuple[list[int], list[str]]:
    """Ids and texts; a token that is a part of a character has bytes instead of a text."""
    found: list[dict[str, Any]] = answer["tokens"]
    pieces = [one["piece"] for one in found]
    strings = [piece if isinstance(piece, str) else bytes(piece).decode(errors="replace") for piece in pieces]
    return [one["id"] for one in found], strings


class Events:
    """Cuts a stream of bytes into the payloads of its server-sent events; comments are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        return [event[5:].strip() for event in whole if event.startswith(b"data:")]


def is_progress(event: bytes) -> bool:
    """JSON escapes quotes inside strings: no text of a model looks like one of these keys."""
    return _PROGRESS in event


def is_usage(event: bytes) -> bool:
    """The event after all choices, which holds nothing but token counts."""
    return _USAGE in event and b'"choices":[]' in event


def is_error(event: bytes) -> bool:
    return event.startswith(_ERROR)


def refusal(status: int, body: bytes) -> BadRequest:
    """An error of llama-server's in the form that OpenAI's clients expect; it numbers them where those have a word."""
    try:
        fault: Any = json.loads(body)["error"]
        message, kind = str(fault["message"]), str(fault.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind = f"the engine answered {status}: {body[:200].decode(errors='replace')}", ""
    return BadRequest(message, status=status, code=_CODES.get(kind))


class Whole:
    """A plain answer, put together from the events of a stream with one choice."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._first: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {"content": [], "reasoning_content": [], "text": []}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[dict[str, Any]] = []
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None

    def add(self, event: bytes) -> None:
        """Raises ValueError, KeyError or TypeError where it is no event of such a stream."""
        value: dict[str, Any] = json.loads(event)
        self._first = self._first or value
        self._usage = value.get("usage") or self._usage
        for choice in cast("list[dict[str, Any]]", value["choices"]):
            delta: dict[str, Any] = choice.get("delta") or {}
            logprobs: dict[str, Any] = choice.get("logprobs") or {}
            calls: list[dict[str, Any]] = delta.get("tool_calls") or []
            self._reason = choice.get("finish_reason") or self._reason
            self._logprobs += logprobs.get("content") or []
            for name, text in {**choice, **delta}.items():
                if name in self._texts and text:
                    self._texts[name].append(text)
            for call in calls:
                self._add_call(call)

    def _add_call(self, part: dict[str, Any]) -> None:
        """The first part of a call has its id and its name, the others only more of its arguments."""
        function: dict[str, Any] = part.get("function") or {}
        call = self._calls.setdefault(part["index"], {"type": "function", "function": {"name": "", "arguments": ""}})
        call |= {name: part[name] for name in ("id", "type") if part.get(name)}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def answer(self) -> dict[str, Any]:
        """Raises ValueError where the stream was not whole."""
        if self._reason is None or self._usage is None:
            raise ValueError("the stream ended before the answer did")
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._reason}
        choice["logprobs"] = {"content": self._logprobs} if self._logprobs else None
        if self._chat:
            choice["message"] = self._message()
        else:
            choice["text"] = self._joined("text")
        common = {name: self._first[name] for name in ("id", "created", "model")}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**common, "object": kind, "choices": [choice], "usage": self._usage}

    def _message(self) -> dict[str, Any]:
        content = self._joined("content")
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else "")}
        if reasoning := self._joined("reasoning_content"):
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return message

    def _joined(self, name: str) -> str:
        return "".join(self._texts[name])


def error_event(refused: BadRequest) -> bytes:
    return json.dumps(error_body(refused.status, str(refused), refused.param, refused.code)).encode()
