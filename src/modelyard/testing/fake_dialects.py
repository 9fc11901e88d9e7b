"""Anthropic's messages and OpenAI's responses as a FakeEngine speaks them itself. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from http1 import BadRequest
from modelyard.testing.fake_knobs import Knobs, read_object
from modelyard.testing.fake_openai import Ask, read_chat


def read_message(body: bytes, knobs: Knobs) -> Ask:
    """The body of /v1/messages. Raises BadRequest."""
    fields = _fields(body)
    messages: list[Any] = list(fields.get("messages") or [])
    if fields.get("system"):
        messages = [{"role": "system", "content": fields["system"]}, *messages]
    return _as_chat(fields, knobs, messages, fields.get("max_tokens"), stop=fields.get("stop_sequences"))


def read_response(body: bytes, knobs: Knobs) -> Ask:
    """The body of /v1/responses. Raises BadRequest."""
    fields = _fields(body)
    asked, system = fields.get("input"), fields.get("instructions")
    messages: list[Any] = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked or [])
    messages = [{"role": "system", "content": system}, *messages] if system else messages
    return _as_chat(fields, knobs, messages, fields.get("max_output_tokens"))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return read_object(body)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON object: {error}") from None


def _as_chat(fields: dict[str, Any], knobs: Knobs, messages: list[Any], limit: Any, stop: Any = None) -> Ask:
    chat = {"messages": messages, "max_tokens": limit, "stop": stop}
    kept = {name: fields.get(name) for name in ("model", "cache_salt")}
    return replace(read_chat(json.dumps({**kept, **chat}).encode(), knobs), stream=bool(fields.get("stream")))


@dataclass
class MessageEvents:
    """One answer as a message. `number` makes its id."""

    ask: Ask
    number: int
    cached_tokens: int
    defect: str

    def whole(self, pieces: list[str]) -> dict[str, object]:
        content = [{"type": "text", "text": "".join(pieces)}]
        return {**self._head(), "content": content, "stop_reason": self._reason, "usage": self._usage()}

    def opening(self) -> Iterator[bytes]:
        begun: dict[str, object] = {
            **self._head(),
            "content": [],
            "stop_reason": None,
            "usage": {**self._usage(), "output_tokens": 0},
        }
        yield _event({"type": "message_start", "message": begun})
        yield _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})

    def piece(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return _event({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(self, pieces: list[str]) -> Iterator[bytes]:
        yield _event({"type": "content_block_stop", "index": 0})
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        yield _event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": len(self.ask.answer.pieces)}})
        if self.defect != "messages":
            yield _event({"type": "message_stop"})

    @property
    def _reason(self) -> str:
        return "max_tokens" if self.ask.answer.finish_reason == "length" else "end_turn"

    def _head(self) -> dict[str, object]:
        told = {"type": "message", "role": "assistant", "model": self.ask.model, "stop_sequence": None}
        return {"id": f"msg_{self.number}", **told}

    def _usage(self) -> dict[str, int]:
        """As Anthropic has it: cached tokens are counted beside the others."""
        return {
            "input_tokens": self.ask.prompt_tokens - self.cached_tokens,
            "cache_read_input_tokens": self.cached_tokens,
            "output_tokens": len(self.ask.answer.pieces),
        }


@dataclass
class ResponseEvents:
    """One answer as a response."""

    ask: Ask
    number: int
    cached_tokens: int
    defect: str
    _events: int = 0

    def whole(self, pieces: list[str]) -> dict[str, object]:
        part: dict[str, object] = {"type": "output_text", "text": "".join(pieces), "annotations": []}
        output: list[dict[str, object]] = [
            {"type": "message", "id": f"item_{self.number}", "role": "assistant", "content": [part]}
        ]
        made = len(self.ask.answer.pieces) + (self.defect == "responses")
        usage: dict[str, object] = {"input_tokens": self.ask.prompt_tokens, "output_tokens": made}
        usage["input_tokens_details"] = {"cached_tokens": self.cached_tokens}
        usage["total_tokens"] = self.ask.prompt_tokens + made
        status = "incomplete" if self.ask.answer.finish_reason == "length" else "completed"
        return {**self._head(), "status": status, "output": output, "usage": usage}

    def opening(self) -> Iterator[bytes]:
        yield self._event("response.created", response={**self._head(), "status": "in_progress", "output": []})

    def piece(self, text: str) -> bytes:
        where = {"item_id": f"item_{self.number}", "output_index": 0, "content_index": 0}
        return self._event("response.output_text.delta", **where, delta=text)

    def closing(self, pieces: list[str]) -> Iterator[bytes]:
        told = self.whole(pieces)
        yield self._event(f"response.{told['status']}", response=told)

    def _head(self) -> dict[str, object]:
        return {"id": f"resp_{self.number}", "object": "response", "created_at": 0, "model": self.ask.model}

    def _event(self, kind: str, **values: object) -> bytes:
        self._events += 1
        return _event({"type": kind, "sequence_number": self._events - 1, **values})


def _event(value: dict[str, object]) -> bytes:
    return f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()
