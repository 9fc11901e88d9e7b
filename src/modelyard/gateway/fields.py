"""What a request may ask for, as types: msgspec checks them in C, so that a bound costs next to nothing.

The upstream body is built from these fields, never copied through. A field that the types do not know is stripped and
named in a warning header, or refused where the deployment says so; one that the deployment's engine cannot honour is
refused by name. Inside messages nothing unknown passes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import Refusal, invalid
from modelyard.gateway.strict_json import children, depth, parse_object
from modelyard.records.topology import Deployment

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Text = Annotated[str, Meta(max_length=FIELDS.string_characters)]
_Tokens = Annotated[int, Meta(ge=1, le=FIELDS.max_tokens)]
_Ratio = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Stop = Annotated[str, Meta(min_length=1, max_length=FIELDS.stop_characters)]
_Object = dict[str, Any]


class _TextPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: _Text


_Content = _Text | list[_TextPart]


class _Function(Struct, forbid_unknown_fields=True):
    name: _Name
    arguments: _Text


class _ToolCall(Struct, forbid_unknown_fields=True):
    id: _Name
    function: _Function
    type: Literal["function"] = "function"
    index: int | None = None


class _System(Struct, tag_field="role", tag="system", forbid_unknown_fields=True):
    content: _Content
    name: _Name | None = None


class _Developer(_System, tag="developer"):
    pass


class _User(_System, tag="user"):
    pass


class _Tool(_System, tag="tool"):
    tool_call_id: _Name | None = None


class _FunctionResult(_System, tag="function"):
    pass


class _Assistant(Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True):
    """What an engine answered, as clients send it back: with the empty fields that answers have."""

    content: _Content | None = None
    name: _Name | None = None
    tool_calls: Annotated[list[_ToolCall], Meta(max_length=FIELDS.tools)] | None = None
    reasoning: _Text | None = None
    reasoning_content: _Text | None = None
    refusal: _Text | None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


_Message = _System | _Developer | _User | _Tool | _FunctionResult | _Assistant


class _StreamOptions(Struct):
    include_usage: bool | None = None


class Call(Struct, kw_only=True):
    """The fields that both endpoints know. None stands for absent: a null is not sent on."""

    model: _Name
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Ratio | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: _Ratio | None = None
    n: Annotated[int, Meta(ge=1, le=FIELDS.choices)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=FIELDS.stop_strings)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=FIELDS.logit_bias)] | None
    ) = None
    user: Annotated[str, Meta(max_length=256)] | None = None
    ignore_eos: bool | None = None


class ChatCall(Call, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=FIELDS.messages)]
    max_completion_tokens: _Tokens | None = None
    response_format: _Object | None = None
    tools: Annotated[list[_Object], Meta(max_length=FIELDS.tools)] | None = None
    tool_choice: Annotated[str, Meta(max_length=256)] | _Object | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=FIELDS.top_logprobs)] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None

    @property
    def ends_with_answer(self) -> bool:
        return isinstance(self.messages[-1], _Assistant)

    def problem(self) -> tuple[str, str] | None:
        """The field at fault and what is wrong, for what a type cannot say."""
        if self.response_format is not None and (problem := _response_format(self.response_format)):
            return "response_format", problem
        for name, value in (("tools", self.tools), ("tool_choice", self.tool_choice)):
            if value is not None and depth(value) > FIELDS.json_depth:
                return name, f"nests deeper than {FIELDS.json_depth} levels"
        return None


class CompletionCall(Call, kw_only=True):
    prompt: _Text | Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1)]
    echo: bool | None = None
    suffix: _Text | None = None
    logprobs: Annotated[int, Meta(ge=0, le=FIELDS.top_logprobs)] | None = None
    best_of: Literal[1] | None = None

    def problem(self) -> None:
        return None


AnyCall = ChatCall | CompletionCall
_convert = msgspec.convert
_CALLS: dict[str, tuple[type[AnyCall], frozenset[str]]] = {
    "/v1/chat/completions": (ChatCall, frozenset(ChatCall.__struct_fields__)),
    "/v1/completions": (CompletionCall, frozenset(CompletionCall.__struct_fields__)),
}
_NOTHING: frozenset[str] = frozenset()
_WITH_USAGE = {"include_usage": True}
# "Expected `int` >= 1 - at `$.max_tokens`", "Object missing required field `model`"
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<field>\w*)(?P<rest>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")


class Parsed(Struct):
    """A request body: `fields` as JSON values, `compact` their encoding, `call` the same as checked types;
    `stripped` are the names that `call` does not know."""

    fields: dict[str, Any]
    compact: bytes
    call: AnyCall
    stripped: frozenset[str] | set[str]


def parse(body: bytes, endpoint: str) -> Parsed:
    """Everything that can be checked without knowing the deployment. Raises Refusal (400) naming the field."""
    fields, compact = parse_object(body, FIELDS)
    kind, known = _CALLS[endpoint]
    try:
        call = _convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    if (problem := call.problem()) is not None:
        raise invalid(f"{problem[0]} {problem[1]}", problem[0])
    stripped = _NOTHING if known.issuperset(fields) else fields.keys() - known
    return Parsed(fields, compact, call, stripped)


def upstream_body(parsed: Parsed, deployment: Deployment) -> bytes:
    """The body for the deployment's engine. Raises Refusal naming the field that it cannot have."""
    fields, call, stripped = parsed.fields, parsed.call, parsed.stripped
    for name in deployment.refused_fields:
        if fields.get(name) is not None:
            raise invalid(f"{name} is not supported by the engine behind {deployment.name!r}", name)
    if stripped and deployment.policy.unknown_fields == "refuse":
        name = min(stripped)[:64]
        raise Refusal(400, f"unknown field {name!r}", code="unknown_parameter", param=name)
    # We always ask for usage: the journal has it, and the lane withholds it from who did not ask.
    options = _WITH_USAGE if call.stream else None
    if (
        not stripped
        and call.model == deployment.engine_model
        and fields.get("stream_options") == options
        and None not in fields.values()
    ):
        return parsed.compact
    built = {name: value for name, value in fields.items() if value is not None and name not in stripped}
    built["model"] = deployment.engine_model
    built.pop("stream_options", None)
    if options is not None:
        built["stream_options"] = options
    return msgspec.json.encode(built)


def usage_asked(call: AnyCall) -> bool:
    """Whether the client itself asked for usage in its stream."""
    return bool(call.stream and call.stream_options is not None and call.stream_options.include_usage)


def _explained(error: msgspec.ValidationError) -> Refusal:
    text = str(error)
    match = _AT.match(text)
    assert match is not None
    what, field, rest = match["what"], match["field"] or "", match["rest"] or ""
    missing = _MISSING.search(what)
    if missing is not None and not field:
        return invalid(f"{missing[1]} is missing", missing[1])
    if field == "messages" and ".content" in rest:
        what += "; nothing but text is read here, and no address is ever fetched"
    return invalid(f"{field}{rest}: {what}"[:512], field or None)


def _response_format(value: _Object) -> str:
    if value.get("type") not in ("text", "json_object", "json_schema"):
        return "must be an object whose type is text, json_object or json_schema"
    schema = value.get("json_schema")
    if schema is None:
        return ""
    if len(msgspec.json.encode(schema)) > FIELDS.schema_bytes or depth(schema) > FIELDS.schema_depth + 2:
        return f"holds a schema larger than {FIELDS.schema_bytes} bytes or deeper than {FIELDS.schema_depth} levels"
    return "holds a remote $ref" if _has_remote_reference(schema) else ""


def _has_remote_reference(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        reference = cast("_Object", item).get("$ref") if isinstance(item, dict) else None
        if isinstance(reference, str) and not reference.startswith("#"):
            return True
        pending.extend(children(item))
    return False
