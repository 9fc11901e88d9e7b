"""What the mock engine says and what the load generator sends: both sides compute the same bytes."""

from __future__ import annotations

import json

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and a jovial quartz sphinx judges "
STREAM_INTERVAL_S = 0.020

ANSWER = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": (WORDS * 3)[:300]},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 170, "completion_tokens": 64, "total_tokens": 234},
    },
    separators=(",", ":"),
).encode()

DONE = b"data: [DONE]\n\n"


def stream_event(stream: int, index: int, events: int) -> bytes:
    """Event `index` of `events`: every one is unique, so that a lost, swapped or doubled one cannot pass."""
    role = b'"role":"assistant",' if index == 0 else b""
    finish = b'"length"' if index == events - 1 else b"null"
    return (
        b'data: {"id":"chatcmpl-%06d","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
        b'"choices":[{"index":0,"delta":{%b"content":" word%06d"},"logprobs":null,"finish_reason":%b}]}\n\n'
        % (stream, role, index, finish)
    )


def usage_event(stream: int, events: int) -> bytes:
    """What an engine sends before [DONE] where usage was asked for."""
    return (
        b'data: {"id":"chatcmpl-%06d","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
        b'"choices":[],"usage":{"prompt_tokens":24,"completion_tokens":%d,"total_tokens":%d}}\n\n'
        % (stream, events, 24 + events)
    )


def expected_stream(stream: int, events: int) -> bytes:
    """All that a client who did not ask for usage may see."""
    return b"".join(stream_event(stream, index, events) for index in range(events)) + DONE


def answer_says(body: bytes) -> object:
    """What a client reads in a plain answer, whatever fields a proxy added or put in another order."""
    said = json.loads(body)
    choice, usage = said["choices"][0], said["usage"]
    return choice["message"]["content"], choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"]


def stream_says(events: list[bytes]) -> tuple[str, str | None, bool]:
    """What a client reads in a stream: its text, the finish reason, and whether it ended as a whole one does."""
    text, finish = "", None
    for event in events[:-1]:
        for choice in json.loads(event.removeprefix(b"data:"))["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
    return text, finish, events[-1:] == [DONE]


def messages_say(events: list[bytes]) -> tuple[str, str | None, bool]:
    """The same of a stream in Anthropic's dialect, in the words of chat."""
    values = [json.loads(event.rpartition(b"\ndata: ")[2]) for event in events]
    text = "".join(value["delta"]["text"] for value in values if value["type"] == "content_block_delta")
    reasons = [value["delta"]["stop_reason"] for value in values if value["type"] == "message_delta"]
    return text, {"max_tokens": "length"}.get(reasons[-1]), values[-1]["type"] == "message_stop"


def unary_body(model: str, size_bytes: int) -> bytes:
    """A chat request of exactly `size_bytes`: a system message and turns of at most 4 KB."""
    messages = [{"role": "system", "content": "You are a helpful assistant. Answer briefly."}]
    body = {"model": model, "messages": messages, "max_tokens": 64, "temperature": 0.7}
    text = WORDS * (4096 // len(WORDS))
    while True:
        messages.append({"role": ("assistant", "user")[len(messages) % 2], "content": ""})
        missing = size_bytes - len(_encoded(body))
        if missing < 0:
            raise ValueError(f"a request of {size_bytes} bytes is too small for its fields")
        # Leave room for the fields of another turn, or fill up and stop.
        if missing <= len(text):
            messages[-1]["content"] = (text + WORDS)[:missing]
            return _encoded(body)
        messages[-1]["content"] = text[: min(len(text), missing - 64)]


def stream_body(model: str, stream: int, events: int) -> bytes:
    """The seed names the stream and max_tokens its length: fields that every proxy forwards."""
    messages = [{"role": "user", "content": "Tell a story about a fox, a dog and a sphinx. " * 4}]
    body = {"model": model, "messages": messages, "max_tokens": events, "seed": stream, "stream": True}
    return _encoded(body)


def messages_body(model: str, events: int) -> bytes:
    """The same story asked for in Anthropic's dialect, which knows no seed: the engine takes it for stream 0."""
    messages = [{"role": "user", "content": "Tell a story about a fox, a dog and a sphinx. " * 4}]
    return _encoded({"model": model, "messages": messages, "max_tokens": events, "stream": True})


def _encoded(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
