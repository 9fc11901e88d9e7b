"""OpenAI's Responses requests as types, and the same as a chat request.

The gateway keeps nothing between requests: what needs a memory (`store`, `previous_response_id`, `background`) is
refused, so that nobody relies on it. Nothing but text and calls of the client's own functions is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from modelyard.gateway.dialects.bounds import Name, Object, Ratio, Temperature, Text, Tokens, Word
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import Refusal, invalid

# Chat fields that have another name here.
NAMES = {
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
}
_STATELESS = "this service keeps no response: send the whole conversation as input, with store false or left out"


class InputText(Struct, tag_field="type", tag="input_text"):
    text: Text


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: Text


class PlainText(Struct, tag_field="type", tag="text"):
    text: Text


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: Text


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: Text


class RefusalText(Struct, tag_field="type", tag="refusal"):
    refusal: Text

    @property
    def text(self) -> str:
        return self.refusal


Part = InputText | OutputText | PlainText | RefusalText
Content = Text | Annotated[list[Part], Meta(max_length=FIELDS.messages)]


class Item(Struct, omit_defaults=True):
    """One item of the input; which fields it has follows from its type, and a message needs not name its type."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | Annotated[list[Part | ReasoningText], Meta(max_length=FIELDS.messages)] | None = None
    summary: Annotated[list[SummaryText], Meta(max_length=FIELDS.messages)] | None = None
    id: Name | None = None
    status: Word | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: Text | None = None
    output: Content | None = None


class Tool(Struct, omit_defaults=True):
    """A function that the client runs itself."""

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Choice(Struct):
    type: Literal["function"]
    name: Name


class Format(Struct, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema: Object | None = None
    strict: bool | None = None
    description: Text | None = None


class TextConfig(Struct, omit_defaults=True):
    format: Format | None = None
    verbosity: Word | None = None


class Reasoning(Struct, omit_defaults=True):
    effort: Word | None = None
    summary: Word | None = None


class ResponsesCall(Struct, kw_only=True, omit_defaults=True):
    model: Name
    input: Text | Annotated[list[Item], Meta(min_length=1, max_length=FIELDS.messages)]
    instructions: Text | None = None
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Ratio | None = None
    tools: Annotated[list[Tool], Meta(max_length=FIELDS.tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: Annotated[dict[Word, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None

    def check(self) -> None:
        """Raises Refusal (400) for what needs a memory between requests, or a service beside the engine."""
        for name in ("store", "background", "previous_response_id", "conversation"):
            if getattr(self, name):
                raise Refusal(400, f"{name} is not served here: {_STATELESS}", code="unsupported_parameter", param=name)
        if self.prompt is not None:
            raise Refusal(
                400,
                "prompt names a template that is kept elsewhere: send its text as input",
                code="unsupported_parameter",
                param="prompt",
            )
        if self.truncation == "auto":
            raise invalid('truncation: nothing is dropped from an input here; only "disabled" is served', "truncation")


def chat_fields(call: ResponsesCall) -> Object:
    """The call as fields of a chat request; None where it says nothing. Raises Refusal."""
    config, choice = call.text, call.tool_choice
    return {
        "model": call.model,
        "messages": _messages(call),
        "stream": call.stream,
        "max_completion_tokens": call.max_output_tokens,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "tools": [{"type": "function", "function": _function(tool)} for tool in call.tools] if call.tools else None,
        "tool_choice": _tool_choice(choice) if call.tools else None,
        "parallel_tool_calls": call.parallel_tool_calls if call.tools else None,
        "response_format": _response_format(config.format) if config is not None and config.format else None,
        "reasoning_effort": call.reasoning.effort if call.reasoning is not None else None,
        "user": call.user,
    }


def ignored(call: ResponsesCall) -> frozenset[str]:
    """Known fields that nothing in a chat request stands for."""
    names: set[str] = set()
    if call.text is not None and call.text.verbosity is not None:
        names.add("text.verbosity")
    if call.reasoning is not None and call.reasoning.summary is not None:
        names.add("reasoning.summary")
    return frozenset(names)


def _messages(call: ResponsesCall) -> list[Object]:
    made: list[Object] = [{"role": "system", "content": call.instructions}] if call.instructions else []
    if isinstance(call.input, str):
        return [*made, {"role": "user", "content": call.input}]
    for number, item in enumerate(call.input):
        _add(made, item, f"input[{number}]")
    return made


def _add(made: list[Object], item: Item, where: str) -> None:
    """What the assistant did in one turn (thought, said, called) stands in several items, and in one chat message."""
    match item.type:
        case "message":
            if item.role is None or item.content is None:
                raise invalid(f"{where}: a message needs role and content", "input")
            if item.role == "assistant":
                _turn(made)["content"] = _joined(item.content)
            else:
                made.append({"role": item.role, "content": _joined(item.content)})
        case "reasoning":
            thought = _joined(item.content) if item.content else ""
            if thought:
                made.append({"role": "assistant", "content": None, "reasoning": thought, "reasoning_content": thought})
        case "function_call":
            if item.call_id is None or item.name is None or item.arguments is None:
                raise invalid(f"{where}: a function_call needs call_id, name and arguments", "input")
            function = {"name": item.name, "arguments": item.arguments}
            calls: list[Object] = _turn(made, calling=True).setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise invalid(f"{where}: a function_call_output needs call_id and output", "input")
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})


def _turn(made: list[Object], *, calling: bool = False) -> Object:
    """The assistant's message that the next item belongs to."""
    last = made[-1] if made else None
    if last is None or last["role"] != "assistant" or (not calling and (last["content"] or "tool_calls" in last)):
        made.append(last := {"role": "assistant", "content": None})
    return last


def _joined(content: str | list[Any]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _function(tool: Tool) -> Object:
    fields = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    return {"name": tool.name, **{name: value for name, value in fields.items() if value is not None}}


def _tool_choice(choice: str | Choice | None) -> str | Object | None:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, Choice) else choice


def _response_format(form: Format) -> Object | None:
    if form.type != "json_schema":
        return {"type": form.type}
    if form.schema is None:
        raise invalid("text.format: a json_schema needs its schema", "text")
    schema: Object = {"name": form.name or "answer", "schema": form.schema}
    if form.strict is not None:
        schema["strict"] = form.strict
    return {"type": "json_schema", "json_schema": schema}
