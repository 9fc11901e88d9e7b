"""What a request may ask for, as types: msgspec checks them in C, so that a bound costs next to nothing.

The upstream body is built from these fields, never copied through. A field that the types do not know is stripped and
named in a warning header, or refused where the deployment says so; one that the deployment's engine cannot honour is
refused by name. Inside messages nothing unknown passes."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from modelyard.gateway.explaining import explained
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import Refusal, invalid
from modelyard.gateway.schemas import schema_problem, tools_problem, value_problem
from modelyard.gateway.strict_json import Body, depth, parse_object
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
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None
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
            if value is not None and (problem := value_problem(value, FIELDS.json_depth)):
                return name, problem
        if self.tools is not None and (problem := tools_problem(self.tools)):
            return "tools", problem
        return None


class CompletionCall(Call, kw_only=True):
    prompt: (
        _Text
        | Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1, max_length=FIELDS.prompt_tokens)]
    )
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


class Parsed(Struct):
    """A request body: `fields` as JSON values, `compact` their encoding, `call` the same as checked types.

    `stripped` are the names that `call` does not know, and once the deployment is known those that its engine is not
    sent; `bounded` those that it is sent with a lower value. `key_id` is whose request it is."""

    fields: dict[str, Any]
    compact: bytes
    call: AnyCall
    stripped: frozenset[str] | set[str]
    bounded: tuple[str, ...] = ()
    key_id: str = ""


def parse(body: Body, endpoint: str) -> Parsed:
    """Everything that can be checked without knowing the deployment. Raises Refusal (400) naming the field."""
    fields, compact = parse_object(body, FIELDS)
    kind, known = _CALLS[endpoint]
    try:
        call = _convert(fields, kind)
    except msgspec.ValidationError as error:
        raise explained(error) from None
    if (problem := call.problem()) is not None:
        raise invalid(f"{problem[0]} {problem[1]}", problem[0])
    stripped = _NOTHING if known.issuperset(fields) else fields.keys() - known
    return Parsed(fields, compact, call, stripped)


def upstream_body(parsed: Parsed, deployment: Deployment) -> bytes:
    """The body for the deployment's engine. Raises Refusal naming the field that it cannot have."""
    fields, call, policy = parsed.fields, parsed.call, deployment.policy
    unsent = _NOTHING
    if not deployment.unsent_fields.isdisjoint(fields):
        unsent = {name for name in deployment.unsent_fields & fields.keys() if fields[name] is not None}
        for name in (*deployment.refused_fields, *policy.refused_fields):
            if name in unsent:
                raise invalid(f"{name} is not supported by the engine behind {deployment.name!r}", name)
    if parsed.stripped:
        _settle_unknown(parsed, deployment)
    if unsent:
        parsed.stripped = parsed.stripped | unsent
    changed = _bounds(parsed, deployment.context_tokens)
    if deployment.cache_salt and policy.salted:
        changed["cache_salt"] = salt_of(parsed.key_id)
    # We always ask for usage: the journal has it, and the lane withholds it from who did not ask.
    options = _WITH_USAGE if call.stream else None
    stripped = parsed.stripped
    keeps_all = not stripped and None not in fields.values()
    if keeps_all and not changed and call.model == deployment.engine_model and fields.get("stream_options") == options:
        return parsed.compact
    if keeps_all:
        built = fields.copy()
    else:
        built = {name: value for name, value in fields.items() if value is not None and name not in stripped}
    built["model"] = deployment.engine_model
    built.pop("stream_options", None)
    if options is not None:
        built["stream_options"] = options
    built.update(changed)
    return msgspec.json.encode(built)


def _settle_unknown(parsed: Parsed, deployment: Deployment) -> None:
    """What becomes of the fields that we do not know: passed on, left out, or the request is refused."""
    policy = deployment.policy
    if policy.forwarded_fields:
        forwarded = parsed.stripped.intersection(policy.forwarded_fields)
        for name in forwarded:
            _check_forwarded(name, parsed.fields[name])
        parsed.stripped = parsed.stripped - forwarded
    if parsed.stripped and policy.unknown_fields == "refuse":
        name = min(parsed.stripped)[:64]
        raise Refusal(400, f"unknown field {name!r}", code="unknown_parameter", param=name)


def _check_forwarded(name: str, value: Any) -> None:
    problem = value_problem(value, FIELDS.schema_depth)
    if len(msgspec.json.encode(value)) > FIELDS.schema_bytes:
        problem = f"is larger than {FIELDS.schema_bytes} bytes"
    if problem:
        raise invalid(f"{name} {problem}", name)


def _bounds(parsed: Parsed, context_tokens: int) -> dict[str, Any]:
    """Fields that ask for more than the deployment's context holds beside a prompt of one token, as they are sent on.
    The prompt is counted by the engine alone: what does not fit beside it, it refuses."""
    call, most = parsed.call, context_tokens - 1
    asked = call.max_tokens
    completion = call.max_completion_tokens if type(call) is ChatCall else None
    if most < 1 or ((asked is None or asked <= most) and (completion is None or completion <= most)):
        return {}
    named = (("max_tokens", asked), ("max_completion_tokens", completion))
    bounded = {name: most for name, value in named if value is not None and value > most}
    parsed.bounded = tuple(bounded)
    return bounded


@lru_cache(maxsize=4096)
def salt_of(key_id: str) -> str:
    """What keeps the cached prefixes of one key apart from those of others: the same after every start."""
    return sha256(f"modelyard prefix cache {key_id}".encode()).hexdigest()[:32]


def warning_of(parsed: Parsed) -> bytes:
    """Header lines that name the fields which the engine was not sent, or not as they came, as far as a header can."""
    lines = b""
    for what, names in ((b"ignored", parsed.stripped), (b"bounded", parsed.bounded)):
        if names:
            shown = ", ".join(sorted(name[:64] for name in names if name.isascii() and name.isprintable())[:8])
            lines += b"x-modelyard-%b-fields: %b\r\n" % (what, (shown or "(not printable)").encode())
    return lines


def usage_asked(call: AnyCall) -> bool:
    """Whether the client itself asked for usage in its stream."""
    return bool(call.stream and call.stream_options is not None and call.stream_options.include_usage)


def _response_format(value: _Object) -> str:
    if value.get("type") not in ("text", "json_object", "json_schema"):
        return "must be an object whose type is text, json_object or json_schema"
    schema = value.get("json_schema")
    if schema is None:
        return ""
    if len(msgspec.json.encode(schema)) > FIELDS.schema_bytes or depth(schema) > FIELDS.schema_depth + 2:
        return f"holds a schema larger than {FIELDS.schema_bytes} bytes or deeper than {FIELDS.schema_depth} levels"
    inner = cast("_Object", schema).get("schema") if isinstance(schema, dict) else None
    return value_problem(schema, FIELDS.json_depth) or (schema_problem(inner) if inner is not None else "")
