"""What a request may ask for. The upstream body is built from this table, never copied through.

A field that the table does not know is stripped and named in a warning header, or refused where the deployment says
so; a field that the deployment's engine cannot honour is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from modelyard.gateway.limits import FIELDS, FieldLimits
from modelyard.gateway.refusals import Refusal, invalid
from modelyard.gateway.strict_json import children, depth, parse_object
from modelyard.records.topology import Deployment

# A check returns what is wrong with a value ("" if nothing).
Check = Callable[[Any], str]


def _object(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return cast("dict[str, Any]", value) if type(value) is dict else {}


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str:
        if type(value) in (int, float) and low <= value <= high:
            return ""
        return f"must be a number from {low:g} to {high:g}"

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str:
        if type(value) is int and low <= value <= high:
            return ""
        return f"must be an integer from {low} to {high}"

    return check


def _boolean(value: Any) -> str:
    return "" if type(value) is bool else "must be true or false"


def _text(most: int) -> Check:
    def check(value: Any) -> str:
        return "" if type(value) is str and len(value) <= most else f"must be a string of at most {most} characters"

    return check


def _stop(value: Any) -> str:
    strings = cast("list[Any]", [value] if type(value) is str else value)
    if type(strings) is not list or len(strings) > FIELDS.stop_strings:
        return f"must be a string or a list of at most {FIELDS.stop_strings} strings"
    for item in strings:
        if type(item) is not str or not 0 < len(item.encode()) <= FIELDS.stop_bytes:
            return f"must hold strings of 1 to {FIELDS.stop_bytes} bytes"
    return ""


def _logit_bias(value: Any) -> str:
    if type(value) is not dict or len(cast("dict[str, Any]", value)) > FIELDS.logit_bias:
        return f"must be an object of at most {FIELDS.logit_bias} entries"
    within = _number(-100, 100)
    return "must map token ids to numbers from -100 to 100" if any(map(within, children(value))) else ""


def _tools(value: Any) -> str:
    if type(value) is not list or len(cast("list[Any]", value)) > FIELDS.tools:
        return f"must be a list of at most {FIELDS.tools} tools"
    return _too_deep(value)


def _tool_choice(value: Any) -> str:
    return _too_deep(value) if type(value) in (str, dict) else "must be a string or an object"


def _too_deep(value: Any) -> str:
    return f"nests deeper than {FIELDS.json_depth} levels" if depth(value) > FIELDS.json_depth else ""


def _response_format(value: Any) -> str:
    fields = _object(value)
    if fields.get("type") not in ("text", "json_object", "json_schema"):
        return "must be an object whose type is text, json_object or json_schema"
    schema = fields.get("json_schema")
    if schema is None:
        return ""
    if len(msgspec.json.encode(schema)) > FIELDS.schema_bytes or depth(schema) > FIELDS.schema_depth + 2:
        return f"holds a schema larger than {FIELDS.schema_bytes} bytes or deeper than {FIELDS.schema_depth} levels"
    return "holds a remote $ref" if _has_remote_reference(schema) else ""


def _stream_options(value: Any) -> str:
    return "" if type(value) is dict else "must be an object"


def _prompt(value: Any) -> str:
    if type(value) is str:
        return ""
    tokens = cast("list[Any]", value)
    if type(tokens) is list and tokens and all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        return ""
    return "must be one string or one list of token ids"


def _messages(value: Any) -> str:
    messages = cast("list[Any]", value)
    if type(messages) is not list or not 0 < len(messages) <= FIELDS.messages:
        return f"must be a list of 1 to {FIELDS.messages} messages"
    for index, message in enumerate(messages):
        if problem := _message(message):
            return f"[{index}] {problem}"
    return ""


_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal"})
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def _message(message: Any) -> str:
    if type(message) is not dict:
        return "must be an object"
    fields = cast("dict[str, Any]", message)
    role = fields.get("role")
    if type(role) is not str or role not in _ROLES:
        return f"needs a role out of {', '.join(sorted(_ROLES))}"
    if len(fields) > 2:
        if unknown := fields.keys() - _MESSAGE_FIELDS:
            return f"has an unknown field {min(unknown)[:64]!r}"
        if problem := _too_deep(fields):
            return problem
    content = fields.get("content")
    if type(content) is str or (content is None and role == "assistant"):
        return ""
    if type(content) is not list:
        return "needs content: a string or a list of parts"
    for part in map(_object, cast("list[Any]", content)):
        if part.get("type") != "text" or type(part.get("text")) is not str:
            return "has a content part that is not text: nothing but text is read here, and no address is ever fetched"
    return ""


_COMMON: dict[str, Check] = {
    "model": _text(256),
    "stream": _boolean,
    "stream_options": _stream_options,
    "max_tokens": _integer(1, FIELDS.max_tokens),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(-1, 1_000_000),
    "min_p": _number(0, 1),
    "n": _integer(1, FIELDS.choices),
    "stop": _stop,
    "seed": _integer(-(2**63), 2**63 - 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.01, 10),
    "logit_bias": _logit_bias,
    "user": _text(256),
    "ignore_eos": _boolean,
}
CHAT: dict[str, Check] = {
    **_COMMON,
    "messages": _messages,
    "max_completion_tokens": _integer(1, FIELDS.max_tokens),
    "response_format": _response_format,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _boolean,
    "logprobs": _boolean,
    "top_logprobs": _integer(0, FIELDS.top_logprobs),
    "reasoning_effort": _text(32),
}
COMPLETION: dict[str, Check] = {
    **_COMMON,
    "prompt": _prompt,
    "echo": _boolean,
    "suffix": _text(FIELDS.string_bytes),
    "logprobs": _integer(0, FIELDS.top_logprobs),
    "best_of": _integer(1, 1),
}


@dataclass(slots=True)
class Call:
    """A request as parsed at the edge: `fields` holds JSON values, `compact` is their encoding; `model` and `stream`
    are checked already."""

    fields: dict[str, Any]
    compact: bytes
    model: str
    stream: bool


def parse(body: bytes, limits: FieldLimits = FIELDS) -> Call:
    """Reads what routing needs; the rest is checked by `upstream_body`, once the deployment is known."""
    fields, compact = parse_object(body, limits)
    model = fields.get("model")
    if type(model) is not str or not model:
        raise invalid("name a model", "model")
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        raise invalid("must be true or false", "stream")
    return Call(fields, compact, model, bool(stream))


@dataclass(slots=True)
class Upstream:
    """What goes to the engine. `usage_asked`: whether the client itself asked for usage in its stream."""

    body: bytes
    usage_asked: bool
    stripped: tuple[str, ...]


def upstream_body(call: Call, table: dict[str, Check], required: str, deployment: Deployment) -> Upstream:
    """The body for the deployment's engine. Raises Refusal naming the field at fault."""
    fields = call.fields
    dropped: list[str] = []
    for name, value in fields.items():
        check = table.get(name)
        if check is None or value is None:
            dropped.append(name)
        elif problem := check(value):
            raise invalid(f"{name} {problem}", name)
    if fields.get(required) is None:
        raise invalid(f"{required} is missing", required)
    for name in deployment.refused_fields:
        if fields.get(name) is not None:
            raise invalid(f"{name} is not supported by the engine behind {deployment.name!r}", name)
    stripped = tuple(name for name in dropped if name not in table)
    if stripped and deployment.unknown_fields == "refuse":
        raise Refusal(400, f"unknown field {stripped[0][:64]!r}", code="unknown_parameter", param=stripped[0][:64])
    usage_asked = call.stream and bool(_object(fields.get("stream_options")).get("include_usage"))
    return Upstream(_built(call, dropped, deployment.engine_model, usage_asked), usage_asked, stripped)


def _built(call: Call, dropped: list[str], engine_model: str, usage_asked: bool) -> bytes:
    """Encoded from the checked fields; `compact` is just that where nothing had to change."""
    fields = call.fields
    if call.stream and not usage_asked:
        fields["stream_options"] = {"include_usage": True}
    elif not dropped and call.model == engine_model and (usage_asked or "stream_options" not in fields):
        return call.compact
    for name in dropped:
        del fields[name]
    if not call.stream:
        fields.pop("stream_options", None)
    fields["model"] = engine_model
    return msgspec.json.encode(fields)


def _has_remote_reference(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        reference = cast("dict[str, Any]", item).get("$ref") if isinstance(item, dict) else None
        if isinstance(reference, str) and not reference.startswith("#"):
            return True
        pending.extend(children(item))
    return False
