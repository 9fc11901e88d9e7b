"""Anthropic's Messages requests as types, and the same as a chat request.

Keys inside blocks that we do not know (`cache_control`, `citations`, ...) are hints and go no further; a block of a
kind that we do not know is refused. Nothing but text and calls of the client's own tools is read."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from modelyard.gateway.dialects.bounds import Name, Object, Ratio, Stops, Temperature, Text, Tokens, Word
from modelyard.gateway.limits import FIELDS
from modelyard.gateway.refusals import invalid

# Chat fields that have another name here.
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice",
    "user": "metadata",
}


class TextBlock(Struct, tag_field="type", tag="text"):
    text: Text


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    thinking: Text
    signature: Text = ""


class RedactedBlock(Struct, tag_field="type", tag="redacted_thinking"):
    """What another service hid of its thoughts: nothing here could read it."""

    data: Text = ""


class ToolUse(Struct, tag_field="type", tag="tool_use"):
    id: Name
    name: Name
    input: Object


class ToolResult(Struct, tag_field="type", tag="tool_result", omit_defaults=True):
    tool_use_id: Name
    content: Text | list[TextBlock] = ""
    is_error: bool | None = None


Block = TextBlock | ThinkingBlock | RedactedBlock | ToolUse | ToolResult


class Said(Struct):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], Meta(max_length=FIELDS.messages)]


class Tool(Struct, omit_defaults=True):
    """A tool that the client runs itself; those that Anthropic's servers run have another type."""

    name: Name
    input_schema: Object
    description: Text | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None


class ToolChoice(Struct, omit_defaults=True):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Format(Struct):
    type: Literal["json_schema"]
    schema: Object


class OutputConfig(Struct, omit_defaults=True):
    effort: Word | None = None
    format: Format | None = None


class Thinking(Struct, omit_defaults=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None


class Metadata(Struct, omit_defaults=True):
    user_id: Annotated[str, Meta(max_length=256)] | None = None


class CountCall(Struct, kw_only=True, omit_defaults=True):
    """What may stand in a request to count tokens; MessagesCall adds how to answer."""

    model: Name
    messages: Annotated[list[Said], Meta(min_length=1, max_length=FIELDS.messages)]
    system: Text | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Meta(max_length=FIELDS.tools)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesCall(CountCall, kw_only=True, omit_defaults=True):
    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: Stops | None = None
    temperature: Temperature | None = None
    top_p: Ratio | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    metadata: Metadata | None = None


def chat_messages(call: CountCall) -> list[Object]:
    """The conversation as chat messages. Raises Refusal where it ends in the assistant's own words."""
    if call.messages[-1].role == "assistant":
        raise invalid("messages: the last one is the assistant's; going on from it is not served here", "messages")
    system = call.system if isinstance(call.system, str) else "\n".join(block.text for block in call.system or ())
    made: list[Object] = [{"role": "system", "content": system}] if system else []
    for said in call.messages:
        if isinstance(said.content, str):
            made.append({"role": said.role, "content": said.content})
        elif said.role == "assistant":
            made.append(_assistant(said.content))
        else:
            made += _others(said.role, said.content)
    return made


def chat_fields(call: MessagesCall) -> Object:
    """The call as fields of a chat request; None where it says nothing."""
    output, choice = call.output_config, call.tool_choice
    return {
        "model": call.model,
        "messages": chat_messages(call),
        "max_tokens": call.max_tokens,
        "stream": call.stream,
        "stop": call.stop_sequences or None,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "top_k": call.top_k or None,
        "user": call.metadata.user_id if call.metadata else None,
        "reasoning_effort": output.effort if output else None,
        "response_format": _response_format(output.format) if output and output.format else None,
        "tools": chat_tools(call.tools),
        "tool_choice": _tool_choice(choice) if choice and call.tools else None,
        "parallel_tool_calls": False if choice and call.tools and choice.disable_parallel_tool_use else None,
    }


def chat_tools(tools: list[Tool] | None) -> list[Object] | None:
    return [{"type": "function", "function": _function(tool)} for tool in tools] if tools else None


def _function(tool: Tool) -> Object:
    function: Object = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function


def _tool_choice(choice: ToolChoice) -> str | Object:
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice.name is None:
        raise invalid("tool_choice.name is missing: which tool?", "tool_choice")
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(form: Format) -> Object:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema, "strict": True}}


def _assistant(blocks: list[Block]) -> Object:
    """What the model said before. Its thoughts go by both names: templates differ in which one they read."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Object] = []
    for block in blocks:
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUse():
                arguments = msgspec.json.encode(block.input).decode()
                function = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": function})
            case RedactedBlock():
                pass
            case ToolResult():
                raise invalid("messages: a tool_result stands in what the assistant said", "messages")
    made: Object = {"role": "assistant", "content": "".join(texts)}
    if calls:
        made["tool_calls"] = calls
        made["content"] = made["content"] or None
    if thought := "".join(thoughts):
        made["reasoning"] = made["reasoning_content"] = thought
    return made


def _others(role: str, blocks: list[Block]) -> list[Object]:
    """A user's or system's turn: results of tools are messages of their own, in the order in which they stand."""
    made: list[Object] = []
    for block in blocks:
        match block:
            case TextBlock():
                last = made[-1] if made and made[-1]["role"] == role else None
                if last is None:
                    made.append({"role": role, "content": block.text})
                elif isinstance(last["content"], str):
                    last["content"] = [{"type": "text", "text": text} for text in (last["content"], block.text)]
                else:
                    last["content"].append({"type": "text", "text": block.text})
            case ToolResult() if role == "user":
                made.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _joined(block.content)})
            case _:
                raise invalid(f"messages: a block of this kind does not belong into what the {role} said", "messages")
    return made


def _joined(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def ignored(call: CountCall) -> frozenset[str]:
    """Known fields that nothing in a chat request stands for."""
    told = call.thinking is not None and call.thinking.type != "adaptive"
    return frozenset({"thinking"} if told else ())
