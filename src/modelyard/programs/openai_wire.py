"""The OpenAI wire format as pure functions: bodies to checked asks, answers to JSON and server-sent events.

Everything that this server would have to ignore or fake (several choices, log-probabilities, tools, echo) is refused
by name, so that a client never takes silence for support.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from dataclasses import dataclass
from typing import Any, cast

from http1 import BadRequest, sse

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH = 64 * 1024, 64
MAX_MESSAGES = 4096
ANY_OBJECT_SCHEMA = '{"type":"object"}'

_NUMBERS = {  # name: (lowest, highest, lowest is allowed itself)
    "temperature": (0.0, 2.0, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, 10.0, False),
}
_REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {  # name: the values that ask for nothing
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "prediction": (None,),
}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Ask:
    """One checked request: `prompt` is what the stepping process takes (messages and, of an answer that it is to go on
    with, what is `begun`; a text; or tokens), `param` the field a prompt error is about."""

    chat: bool
    prompt: dict[str, Any]
    param: str
    sampling: dict[str, float | int]
    stop: list[str]
    max_tokens: int | None
    schema: str | None
    stream: bool
    include_usage: bool


def parse_ask(body: bytes, *, chat: bool, served_name: str) -> Ask:
    """Raises BadRequest with the status, message and `param` that OpenAI's clients expect."""
    fields = parse_object(body)
    model = fields.get("model")
    if not isinstance(model, str):
        raise BadRequest("you must provide a model parameter", param="model")
    if model != served_name:
        raise BadRequest(f"The model `{model}` does not exist.", status=404, param="model", code="model_not_found")
    for name, harmless in _REFUSED_UNLESS.items():
        # `True == 1`: a boolean must not pass for a number, nor the other way round.
        value = fields.get(name)
        if not any(value == allowed and type(value) is type(allowed) for allowed in harmless):
            raise BadRequest(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    stream = _boolean(fields, "stream")
    prompt = _chat_prompt(fields) if chat else _completion_prompt(fields)
    return Ask(
        chat=chat,
        prompt=prompt,
        param="messages" if chat else "prompt",
        sampling=_sampling(fields),
        stop=_stops(fields.get("stop")),
        max_tokens=_max_tokens(fields, chat=chat),
        schema=_schema(fields.get("response_format")),
        stream=stream,
        include_usage=_include_usage(fields.get("stream_options"), stream=stream),
    )


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; a key that stands twice is refused. Raises BadRequest."""
    try:
        value = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # a depth bomb is a RecursionError, a 5,000-digit number a ValueError
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the request body is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise BadRequest("the request body must be a JSON object")
    return cast("dict[str, Any]", value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return value


def _boolean(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and type(value) is not bool:
        raise BadRequest(f"{name} must be true or false", param=name)
    return bool(value)


def _include_usage(options: Any, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object", param="stream_options")
    return _boolean(cast("dict[str, Any]", options), "include_usage")


def _chat_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a non-empty list", param="messages")
    listed = cast("list[Any]", messages)
    if len(listed) > MAX_MESSAGES:
        raise BadRequest(f"more than {MAX_MESSAGES} messages", param="messages")
    read = chat_messages(listed)
    if not _boolean(fields, "continue_final_message"):
        return {"messages": read}
    if len(read) < 2 or read[-1]["role"] != "assistant":
        message = "continue_final_message needs a last message of the assistant, after another one"
        raise BadRequest(message, param="continue_final_message")
    return {"messages": read[:-1], "begun": read[-1]["content"]}


def chat_messages(messages: list[Any]) -> list[dict[str, str]]:
    """Role and text of each message. Raises BadRequest."""
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    fields = cast("dict[str, Any]", message)
    role = fields.get("role")
    if role not in _ROLES:
        raise BadRequest(f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    if fields.get("tool_calls"):
        raise BadRequest(f"{where}.tool_calls is not supported by this server", param=f"{where}.tool_calls")
    content = fields.get("content")
    if content is None and role == "assistant":
        content = ""
    return {"role": role, "content": _content(content, f"{where}.content")}


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string or a list of text parts", param=where)
    texts: list[str] = []
    for part in cast("list[Any]", content):
        fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        text = fields.get("text")
        if fields.get("type") != "text" or not isinstance(text, str):
            raise BadRequest(f"{where} may hold only parts of type text", param=where)
        texts.append(text)
    return "".join(texts)


def _completion_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(cast("list[Any]", prompt)) == 1 and not isinstance(prompt[0], int):
        prompt = cast("Any", prompt[0])  # one prompt in a list is one prompt
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, list) and all(type(token) is int for token in cast("list[Any]", prompt)):
        return {"tokens": prompt}
    raise BadRequest("prompt must be one string or one list of token ids", param="prompt")


def _sampling(fields: dict[str, Any]) -> dict[str, float | int]:
    sampling: dict[str, float | int] = {}
    for name, (lowest, highest, inclusive) in _NUMBERS.items():
        value = fields.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise BadRequest(f"{name} must be a number", param=name)
        if not (lowest <= value <= highest) or (value == lowest and not inclusive):
            raise BadRequest(f"{name} must be between {lowest:g} and {highest:g}, not {value:g}", param=name)
        sampling[name] = float(value)
    for name in ("top_k", "seed"):
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not int or abs(value) >= 2**63:
            raise BadRequest(f"{name} must be an integer", param=name)
        sampling[name] = value
    return sampling


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    stops: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise BadRequest(f"stop must be strings of 1 to {MAX_STOP_CHARACTERS} characters", param="stop")
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"at most {MAX_STOPS} stop strings", param="stop")
    return stops


def _max_tokens(fields: dict[str, Any], *, chat: bool) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    for name in names:
        value = fields.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise BadRequest(f"{name} must be an integer of at least 1", param=name)
            return value
    return None


def _schema(value: Any) -> str | None:
    """The JSON schema that the answer must follow, as text; None for free text."""
    if value is None:
        return None
    wanted = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT_SCHEMA
    if kind != "json_schema":
        raise BadRequest("response_format.type must be text, json_object or json_schema", param="response_format")
    named: Any = wanted.get("json_schema")
    schema: Any = cast("dict[str, Any]", named).get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest("response_format.json_schema.schema must be an object", param="response_format")
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_BYTES or _depth(schema) > MAX_SCHEMA_DEPTH:
        raise BadRequest(
            f"the schema is larger than {MAX_SCHEMA_BYTES} bytes or deeper than {MAX_SCHEMA_DEPTH} levels",
            param="response_format",
        )
    if reference := _foreign_reference(schema):
        raise BadRequest(f"the schema refers to {reference}, outside itself", param="response_format")
    return text


def _foreign_reference(value: Any) -> str | None:
    """A $ref out of the schema itself: nothing is fetched, and the engine would take it for "anything"."""
    inner: list[Any] = []
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        reference = fields.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            return reference
        inner = list(fields.values())
    elif isinstance(value, list):
        inner = cast("list[Any]", value)
    return next((found for one in inner if (found := _foreign_reference(one))), None)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(inner) for inner in cast("dict[str, Any]", value).values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(inner) for inner in cast("list[Any]", value)), default=0)
    return 0


@dataclass(frozen=True)
class Usage:
    """Token counts; `cached` of the prompt's tokens were restored from the prefix cache."""

    prompt: int
    completion: int
    cached: int

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Answer:
    """Shapes one answer. Streams are built from a prepared head and tail: only the text is encoded per event."""

    def __init__(self, ask: Ask, served_name: str) -> None:
        self._chat = ask.chat
        prefix = "chatcmpl" if ask.chat else "cmpl"
        self._common = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served_name}
        self._chunk = "chat.completion.chunk" if ask.chat else "text_completion"
        inner = '{"index":0,"delta":{"content":' if ask.chat else '{"index":0,"text":'
        self._head = f'data: {self._envelope()[:-1]},"choices":[{inner}'.encode()
        self._tail = (b"}" if ask.chat else b"") + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def _envelope(self) -> str:
        return json.dumps({**self._common, "object": self._chunk}, separators=(",", ":"))

    def opening(self) -> bytes:
        """The event before all text: it names the role in a chat, and does not exist in a completion."""
        return self._event({"role": "assistant", "content": ""}, None) if self._chat else b""

    def text(self, text: str) -> bytes:
        return self._head + json.dumps(text, ensure_ascii=False).encode() + self._tail

    def closing(self, reason: str) -> bytes:
        return self._event({}, reason)

    def usage(self, usage: Usage) -> bytes:
        return sse({**self._common, "object": self._chunk, "choices": [], "usage": usage.as_json()})

    def whole(self, text: str, reason: str, usage: Usage) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._common, "object": kind, "choices": [choice], "usage": usage.as_json()}

    def _event(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = ""
        return sse({**self._common, "object": self._chunk, "choices": [choice]})


DONE = b"data: [DONE]\n\n"


def model_list(served_name: str, created: int) -> dict[str, Any]:
    entry = {"id": served_name, "object": "model", "created": created, "owned_by": "modelyard"}
    return {"object": "list", "data": [entry]}
