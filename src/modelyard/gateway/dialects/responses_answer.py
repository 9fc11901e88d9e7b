"""A chat answer as OpenAI's Responses: whole, and event by event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from modelyard.gateway.dialects.chat import ChatUsage, Choice, Completion, Message, ToolCall, only_choice
from modelyard.gateway.dialects.native import responses_error
from modelyard.gateway.dialects.responses_request import ResponsesCall
from modelyard.gateway.dialects.sse import event
from modelyard.gateway.lanes import BrokenStream
from modelyard.gateway.limits import WIRE

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """What every form of one response repeats of its request."""

    id: str
    created_at: int
    call: ResponsesCall

    def response(self, status: str, output: list[Item], *, usage: ChatUsage | None = None, why: str = "") -> Item:
        call, now = self.call, msgspec.to_builtins
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": why} if why else None,
            "instructions": call.instructions,
            "max_output_tokens": call.max_output_tokens,
            "metadata": call.metadata or {},
            "model": call.model,
            "output": output,
            "parallel_tool_calls": call.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": call.reasoning.effort if call.reasoning else None, "summary": None},
            "store": False,
            "temperature": call.temperature,
            "text": now(call.text) if call.text and call.text.format else {"format": {"type": "text"}},
            "tool_choice": now(call.tool_choice) or "auto",
            "tools": now(call.tools) or [],
            "top_p": call.top_p,
            "truncation": "disabled",
            "usage": _usage(usage) if usage is not None else None,
            "user": call.user,
        }

    def ended(self, finish_reason: str | None, output: list[Item], usage: ChatUsage | None) -> Item:
        why = _INCOMPLETE.get(finish_reason or "", "")
        return self.response("incomplete" if why else "completed", output, usage=usage, why=why)

    def reasoning(self, number: int, text: str | None, status: str) -> Item:
        content = [{"type": "reasoning_text", "text": text}] if text is not None else []
        head: Item = {"id": f"rs_{self.id}_{number}", "type": "reasoning", "summary": []}
        return {**head, "content": content, "status": status}

    def message(self, number: int, text: str | None, status: str) -> Item:
        content = [text_part(text)] if text is not None else []
        head = {"id": f"msg_{self.id}_{number}", "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def function_call(self, number: int, call: ToolCall, arguments: str, status: str) -> Item:
        if call.function is None or not call.function.name:
            raise BrokenStream("the engine called a function without a name")
        return {
            "id": f"fc_{self.id}_{number}",
            "type": "function_call",
            "call_id": call.id or f"call_{self.id}_{number}",
            "name": call.function.name,
            "arguments": arguments,
            "status": status,
        }


def text_part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: ChatUsage) -> Item:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def whole(answer: Completion, frame: Frame) -> bytes:
    """Raises BrokenStream where the engine's answer holds no message."""
    choice, said = only_choice(answer)
    status = "incomplete" if choice.finish_reason in _INCOMPLETE else "completed"
    output: list[Item] = []
    if said.thought:
        output.append(frame.reasoning(len(output), said.thought, status))
    text = said.content or said.refusal
    if text or not said.tool_calls:
        output.append(frame.message(len(output), text or "", status))
    for call in said.tool_calls or ():
        arguments = (call.function.arguments if call.function else None) or ""
        output.append(frame.function_call(len(output), call, arguments, status))
    return msgspec.json.encode(frame.ended(choice.finish_reason, output, answer.usage))


class _Open:
    """An item that is being told. `fields` name it in events; `call` is the tool call that it is, if any."""

    def __init__(self, kind: str, number: int, item: Item, call: ToolCall | None = None) -> None:
        self.kind, self.number, self.item, self.call = kind, number, item, call
        self.parts: list[str] = []
        self.fields: Item = {"item_id": item["id"], "output_index": number}
        if kind != "function_call":
            self.fields["content_index"] = 0


_DELTAS = {
    "message": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "function_call": "response.function_call_arguments.delta",
}


class ResponseStream:
    """A chat stream as the events of a response. Items may be open side by side: each names its place."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._number = 0
        self._started = False
        self._output: list[Item] = []
        self._spoken: _Open | None = None
        self._calls: dict[int, _Open] = {}
        self._size = 0
        self._finish: str | None = None

    def feed(self, choice: Choice, delta: Message) -> bytes:
        """The events that one piece makes; b"" for one without content. Raises BrokenStream."""
        out: list[bytes] = []
        if thought := delta.thought:
            self._tell(out, self._speaking(out, "reasoning"), thought)
        if text := delta.content or delta.refusal:
            self._tell(out, self._speaking(out, "message"), text)
        for part in delta.tool_calls or ():
            self._call(out, part)
        if choice.finish_reason is not None:
            self._finish = choice.finish_reason
        return b"".join(out)

    def close(self, usage: ChatUsage | None) -> bytes:
        """The last events. Raises BrokenStream where the answer has no end."""
        if self._finish is None:
            raise BrokenStream("the engine ended the stream before the answer's end")
        out: list[bytes] = []
        if not self._output:
            self._speaking(out, "message")
        self._shut(out)
        for called in self._calls.values():
            self._done(out, called)
        response = self._frame.ended(self._finish, self._output, usage)
        self._event(out, f"response.{response['status']}", {"response": response})
        return b"".join(out)

    def fail(self, text: str, code: str) -> bytes:
        return responses_error(text, code, self._number)

    def _event(self, out: list[bytes], kind: str, fields: Item) -> None:
        out.append(event(kind, {"type": kind, "sequence_number": self._number, **fields}))
        self._number += 1

    def _start(self, out: list[bytes]) -> None:
        self._started = True
        response = self._frame.response("in_progress", [])
        self._event(out, "response.created", {"response": response})
        self._event(out, "response.in_progress", {"response": response})

    def _opened(self, out: list[bytes], kind: str, item: Item, call: ToolCall | None = None) -> _Open:
        if not self._started:
            self._start(out)
        self._shut(out)
        number = len(self._output)
        self._output.append(item)
        self._event(out, "response.output_item.added", {"output_index": number, "item": item})
        return _Open(kind, number, item, call)

    def _speaking(self, out: list[bytes], kind: str) -> _Open:
        """The open item of thoughts or of text, whichever is wanted now."""
        if self._spoken is not None and self._spoken.kind == kind:
            return self._spoken
        number = len(self._output)
        if kind == "message":
            item, part = self._frame.message(number, None, "in_progress"), text_part("")
        else:
            item, part = self._frame.reasoning(number, None, "in_progress"), {"type": "reasoning_text", "text": ""}
        spoken = self._opened(out, kind, item)
        self._spoken = spoken
        self._event(out, "response.content_part.added", {**spoken.fields, "part": part})
        return spoken

    def _call(self, out: list[bytes], part: ToolCall) -> None:
        called = self._calls.get(part.index)
        if called is None:
            item = self._frame.function_call(len(self._output), part, "", "in_progress")
            called = self._calls[part.index] = self._opened(out, "function_call", item, part)
        if told := (part.function.arguments if part.function is not None else None):
            self._tell(out, called, told)

    def _tell(self, out: list[bytes], to: _Open, text: str) -> None:
        self._size += len(text)
        if self._size > WIRE.upstream_body_bytes:
            raise BrokenStream("the engine's answer is larger than the gateway holds")
        to.parts.append(text)
        extra: Item = {"logprobs": []} if to.kind == "message" else {}
        self._event(out, _DELTAS[to.kind], {**to.fields, "delta": text, **extra})

    def _shut(self, out: list[bytes]) -> None:
        spoken, self._spoken = self._spoken, None
        if spoken is not None:
            self._done(out, spoken)

    def _done(self, out: list[bytes], told: _Open) -> None:
        """An item is complete: its whole text, its part, and itself."""
        text = "".join(told.parts)
        status = "incomplete" if self._finish in _INCOMPLETE else "completed"
        frame, number = self._frame, told.number
        if told.kind == "function_call":
            assert told.call is not None
            item = frame.function_call(number, told.call, text, status)
            done = {**told.fields, "name": item["name"], "arguments": text}
            self._event(out, "response.function_call_arguments.done", done)
        elif told.kind == "message":
            item = frame.message(number, text, status)
            self._event(out, "response.output_text.done", {**told.fields, "text": text, "logprobs": []})
            self._event(out, "response.content_part.done", {**told.fields, "part": item["content"][0]})
        else:
            item = frame.reasoning(number, text, status)
            self._event(out, "response.reasoning_text.done", {**told.fields, "text": text})
            self._event(out, "response.content_part.done", {**told.fields, "part": item["content"][0]})
        self._output[number] = item
        self._event(out, "response.output_item.done", {"output_index": number, "item": item})
