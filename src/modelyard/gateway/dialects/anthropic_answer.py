"""A chat answer in Anthropic's words: whole, and event by event."""

from __future__ import annotations

from typing import Any

import msgspec

from modelyard.gateway.dialects.chat import ChatUsage, Choice, Completion, Message, ToolCall, only_choice
from modelyard.gateway.dialects.sse import encode_json, event
from modelyard.gateway.lanes import BrokenStream


class Untellable(BrokenStream):
    """A call that the dialect has no words for."""


_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def usage_value(usage: ChatUsage | None) -> dict[str, int]:
    """Anthropic counts cached tokens beside `input_tokens`, not within. What the engine did not say is 0."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.output_tokens,
    }


def stop_of(finish_reason: str | None, stop_text: str | None, *, tools_used: bool) -> dict[str, str | None]:
    """Why it ended. Which stop sequence was met only some engines tell; else it is the end of a turn."""
    if stop_text is not None and finish_reason == "stop" and not tools_used:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_text}
    if tools_used and finish_reason == "stop":  # how some engines end a forced call
        return {"stop_reason": "tool_use", "stop_sequence": None}
    return {"stop_reason": _STOP_REASONS.get(finish_reason or "", "end_turn"), "stop_sequence": None}


def message(answer: Completion, message_id: str, model: str) -> bytes:
    """The whole answer. Raises Untellable where a call's arguments are no JSON object."""
    choice, said = only_choice(answer)
    blocks: list[dict[str, Any]] = []
    if said.thought:
        blocks.append({"type": "thinking", "thinking": said.thought, "signature": ""})
    if said.content or said.refusal:
        blocks.append({"type": "text", "text": said.content or said.refusal})
    calls = enumerate(said.tool_calls or ())
    cut = choice.finish_reason == "length"
    # A call that the limit cut off cannot be told: its arguments have no end.
    blocks += [_tool_use(call, number, message_id) for number, call in calls if not (cut and _is_torn(call))]
    stop = stop_of(choice.finish_reason, choice.stop_text, tools_used=bool(said.tool_calls))
    # Clients take the first block for granted.
    content = blocks or [{"type": "text", "text": ""}]
    usage = usage_value(answer.usage)
    return encode_json({**_head(message_id, model), "content": content, **stop, "usage": usage})


def _head(message_id: str, model: str) -> dict[str, Any]:
    return {"id": message_id, "type": "message", "role": "assistant", "model": model}


def _tool_use(call: ToolCall, number: int, message_id: str) -> dict[str, Any]:
    name, arguments = _called(call)
    return {"type": "tool_use", "id": call_id(call, number, message_id), "name": name, "input": input_of(arguments)}


def _called(call: ToolCall) -> tuple[str, str]:
    function = call.function
    if function is None or not function.name:
        raise BrokenStream("the engine called a tool without a name")
    return function.name, function.arguments or ""


def call_id(call: ToolCall, number: int, message_id: str) -> str:
    return call.id or f"toolu_{message_id.removeprefix('msg_')}_{number}"


def _is_torn(call: ToolCall) -> bool:
    try:
        input_of(_called(call)[1])
    except Untellable:
        return True
    return False


def input_of(arguments: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Untellable("the model called a tool with arguments that are no JSON object") from None


class MessageStream:
    """A chat stream as Anthropic's events.

    Blocks come one after the other and a closed one is never opened again, while chat pieces of several tool calls may
    mix. So one call is told as it comes, and what comes of others meanwhile is kept until the end."""

    def __init__(self, message_id: str, model: str) -> None:
        self._id, self._model = message_id, model
        self._started = False
        self._index = -1
        self._kind = ""
        self._live_call = -1
        self._arguments: dict[int, list[str]] = {}
        self._kept: dict[int, ToolCall] = {}
        self._choice: Choice | None = None

    def feed(self, choice: Choice, delta: Message) -> bytes:
        """The events that one piece makes; b"" for one without content. Raises BrokenStream."""
        out: list[bytes] = []
        if thought := delta.thought:
            self._say(out, "thinking", "thinking_delta", "thinking", thought)
        if text := delta.content or delta.refusal:
            self._say(out, "text", "text_delta", "text", text)
        for part in delta.tool_calls or ():
            self._call(out, part)
        if choice.finish_reason is not None:
            self._choice = choice
        return b"".join(out)

    def close(self, usage: ChatUsage | None) -> bytes:
        """The last events. Raises BrokenStream where the answer has no end, or a call that cannot be told."""
        choice = self._choice
        if choice is None:
            raise BrokenStream("the engine ended the stream before the answer's end")
        out: list[bytes] = []
        for number in sorted(self._kept):
            self._open_call(out, number, self._kept[number])
            self._tell_arguments(out, "".join(self._arguments[number]))
        if self._index < 0:
            self._open(out, {"type": "text", "text": ""})
        self._shut(out)
        if choice.finish_reason != "length":
            for parts in self._arguments.values():
                input_of("".join(parts))
        stop = stop_of(choice.finish_reason, choice.stop_text, tools_used=bool(self._arguments))
        out.append(event("message_delta", {"type": "message_delta", "delta": stop, "usage": usage_value(usage)}))
        out.append(event("message_stop", {"type": "message_stop"}))
        return b"".join(out)

    def fail(self, text: str, code: str) -> bytes:
        kind = "overloaded_error" if code == "gateway_stopped" else "api_error"
        return event("error", {"type": "error", "error": {"type": kind, "message": text}})

    def _start(self, out: list[bytes]) -> None:
        self._started = True
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**_head(self._id, self._model), **nothing, "usage": usage_value(None)}
        out.append(event("message_start", {"type": "message_start", "message": message}))

    def _open(self, out: list[bytes], block: dict[str, Any]) -> None:
        if not self._started:
            self._start(out)
        self._shut(out)
        self._index += 1
        self._kind = block["type"]
        out.append(
            event("content_block_start", {"type": "content_block_start", "index": self._index, "content_block": block})
        )

    def _shut(self, out: list[bytes]) -> None:
        if self._kind:
            out.append(event("content_block_stop", {"type": "content_block_stop", "index": self._index}))
        self._kind, self._live_call = "", -1

    def _say(self, out: list[bytes], kind: str, delta: str, field: str, text: str) -> None:
        if self._kind != kind:
            self._open(out, {"type": kind, field: "", **({"signature": ""} if kind == "thinking" else {})})
        self._tell(out, {"type": delta, field: text})

    def _tell(self, out: list[bytes], delta: dict[str, str]) -> None:
        out.append(event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta}))

    def _call(self, out: list[bytes], part: ToolCall) -> None:
        number, told = part.index, (part.function.arguments if part.function is not None else None) or ""
        known = self._arguments.get(number)
        if known is None:
            self._arguments[number] = known = []
            if self._kind == "tool_use":
                self._kept[number] = part
            else:
                self._open_call(out, number, part)
        elif number != self._live_call and number not in self._kept:
            raise BrokenStream("the engine went on with a tool call that it had ended")
        known.append(told)
        if number == self._live_call:
            self._tell_arguments(out, told)

    def _open_call(self, out: list[bytes], number: int, part: ToolCall) -> None:
        name, _ = _called(part)
        self._open(out, {"type": "tool_use", "id": call_id(part, number, self._id), "name": name, "input": {}})
        self._live_call = number

    def _tell_arguments(self, out: list[bytes], told: str) -> None:
        if told:
            self._tell(out, {"type": "input_json_delta", "partial_json": told})
