"""Chat streams made up at random, and strict readers of the dialects' events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from modelyard.gateway.dialects.dialect import Lane

DONE = b"data: [DONE]\n\n"
_TEXT = st.text(min_size=1, max_size=12)


@dataclass
class Chat:
    """A chat answer as pieces, and what they add up to."""

    deltas: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    usage: tuple[int, int, int] = (5, 7, 2)

    @property
    def text(self) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas)

    @property
    def thought(self) -> str:
        return "".join(delta.get("reasoning") or "" for delta in self.deltas)

    @property
    def calls(self) -> dict[int, tuple[str, str]]:
        """Name and arguments by index."""
        found: dict[int, tuple[str, str]] = {}
        for delta in self.deltas:
            for part in delta.get("tool_calls") or ():
                name, arguments = found.get(part["index"], ("", ""))
                function = part["function"]
                found[part["index"]] = (name or function.get("name", ""), arguments + (function.get("arguments") or ""))
        return found

    def events(self) -> list[bytes]:
        """As an engine sends them, the end marker included."""
        prompt, made, cached = self.usage
        usage = {"prompt_tokens": prompt, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": cached}}
        values = [chat_event({"role": "assistant", "content": ""}), *(chat_event(delta) for delta in self.deltas)]
        return [*values, chat_event({}, self.finish), sse({"choices": [], "usage": usage}), DONE]


def sse(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chat_event(delta: dict[str, Any], finish: str | None = None, **choice: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **choice}]})


def call_part(index: int, arguments: str | None, name: str | None = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    part: dict[str, Any] = {"index": index, "function": function}
    return {"tool_calls": [{**part, "id": f"call_{index}", "type": "function"} if name is not None else part]}


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    """Thoughts, then texts, then calls whose arguments come in pieces that may mix."""
    deltas: list[dict[str, Any]] = [{"reasoning": text} for text in draw(st.lists(_TEXT, max_size=4))]
    deltas += [{"content": text} for text in draw(st.lists(_TEXT, max_size=6))]
    queues: list[list[dict[str, Any]]] = []
    for index in range(draw(st.integers(0, 3))):
        arguments = json.dumps(draw(st.dictionaries(_TEXT, _TEXT, max_size=2)), ensure_ascii=False)
        cut = draw(st.integers(0, len(arguments)))
        queues.append([call_part(index, arguments[:cut], f"tool_{index}"), call_part(index, arguments[cut:])])
    while any(queues):
        # A call begins only after those before it have begun, as engines number them.
        begun = [at for at, queue in enumerate(queues) if len(queue) == 1]
        waiting = [at for at, queue in enumerate(queues) if len(queue) == 2][:1]
        deltas.append(queues[draw(st.sampled_from(begun + waiting))].pop(0))
    finish = "tool_calls" if queues else draw(st.sampled_from(["stop", "length"]))
    counts = draw(st.tuples(st.integers(2, 99), st.integers(0, 99), st.integers(0, 2)))
    return Chat(deltas, finish, counts)


def splits(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Any way to cut `data` into reads."""
    cuts = st.lists(st.integers(0, len(data)), max_size=12).map(lambda found: [0, *sorted(found), len(data)])
    return cuts.map(lambda at: [data[a:b] for a, b in pairwise(at)])


def through(lane: Lane, reads: Sequence[bytes]) -> bytes:
    """What comes out of a lane that is not chunked, for these reads and a clean end."""
    return b"".join(lane.read(b"", [read], False) for read in reads) + lane.read(b"", [], True)


def named_events(data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Strict: each event is one `event:` and one `data:` line, and both name the same type."""
    assert data.endswith(b"\n\n") or not data
    for text in data[:-2].split(b"\n\n") if data else ():
        name, value = text.split(b"\n")
        parsed = json.loads(value.removeprefix(b"data: "))
        assert name == b"event: " + parsed["type"].encode()
        yield parsed["type"], parsed


@dataclass
class Message:
    """What a reader of Anthropic's events ends up with."""

    blocks: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    error: str = ""

    def texts(self, kind: str, name: str) -> str:
        return "".join(block[name] for block in self.blocks if block["type"] == kind)


def read_message(data: bytes) -> Message:
    """Raises AssertionError where the events are not in the order that Anthropic documents."""
    message, started, open_block = Message(), False, False
    for kind, value in named_events(data):
        assert not message.complete and not message.error, "something came after the end"
        match kind:
            case "message_start":
                assert not started and value["message"]["content"] == [] and value["message"]["role"] == "assistant"
                started = True
            case "content_block_start":
                assert started and not open_block and message.stop_reason is None
                assert value["index"] == len(message.blocks)
                message.blocks.append({**value["content_block"], "partial": ""})
                open_block = True
            case "content_block_delta":
                assert open_block and value["index"] == len(message.blocks) - 1
                _add_delta(message.blocks[-1], value["delta"])
            case "content_block_stop":
                assert open_block and value["index"] == len(message.blocks) - 1
                open_block = False
            case "message_delta":
                assert started and not open_block and message.stop_reason is None and message.blocks
                message.stop_reason, message.stop_sequence = (
                    value["delta"]["stop_reason"],
                    value["delta"]["stop_sequence"],
                )
                message.usage = value["usage"]
            case "message_stop":
                assert message.stop_reason is not None
                message.complete = True
            case "error":
                message.error = value["error"]["message"]
            case _:
                raise AssertionError(f"no such event: {kind}")
    return message


def _add_delta(block: dict[str, Any], delta: dict[str, Any]) -> None:
    match block["type"], delta["type"]:
        case "text", "text_delta":
            block["text"] += delta["text"]
        case "thinking", "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "tool_use", "input_json_delta":
            block["partial"] += delta["partial_json"]
        case pair:
            raise AssertionError(f"a delta in the wrong block: {pair}")


@dataclass
class Response:
    """What a reader of Responses events ends up with."""

    final: dict[str, Any] | None = None
    deltas: dict[int, str] = field(default_factory=dict)
    error: str = ""

    def items(self, kind: str) -> list[dict[str, Any]]:
        assert self.final is not None
        return [item for item in self.final["output"] if item["type"] == kind]


def read_response(data: bytes) -> Response:
    """Raises AssertionError where the events are not in the order that OpenAI documents."""
    response = Response()
    items: dict[int, dict[str, Any]] = {}
    done: set[int] = set()
    for number, (kind, value) in enumerate(named_events(data)):
        assert value["sequence_number"] == number
        assert response.final is None and not response.error, "something came after the end"
        if number < 2:
            assert kind == ("response.created", "response.in_progress")[number] or kind == "error"
        if "output_index" in value and kind != "response.output_item.added":
            assert value["output_index"] in items and value["output_index"] not in done
            assert value.get("item_id", items[value["output_index"]]["id"]) == items[value["output_index"]]["id"]
        if kind == "response.output_item.added":
            assert value["output_index"] == len(items)
            items[value["output_index"]] = value["item"]
        elif kind == "response.output_item.done":
            done.add(value["output_index"])
            items[value["output_index"]] = value["item"]
        elif kind.endswith(".delta"):
            response.deltas[value["output_index"]] = response.deltas.get(value["output_index"], "") + value["delta"]
        elif kind in ("response.output_text.done", "response.reasoning_text.done"):
            assert value["text"] == response.deltas.get(value["output_index"], "")
        elif kind == "response.function_call_arguments.done":
            assert value["arguments"] == response.deltas.get(value["output_index"], "")
        elif kind in ("response.completed", "response.incomplete"):
            response.final = value["response"]
            assert done == set(items) and response.final["output"] == [items[at] for at in sorted(items)]
            assert f"response.{response.final['status']}" == kind
        elif kind == "error":
            response.error = value["message"]
    return response
