"""Requests of any shape: sound ones with fields chosen by chance, and the same with some of their values spoilt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from modelyard.selftest.bench import MODEL

Make = Callable[[random.Random], Any]

TEXTS = ("hello", "", "a\u0000b", "é🙂\u2028", "data: [DONE]\n\n", "x" * 3000, "\ud800", "\r\nset-cookie: a=b", "null")
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**63, 2**64, 10**30, 0.0, -0.5, 1e308, 5e-324),
    *TEXTS,
    *([], {}, [[]], {"": {}}, [None], {"type": None}, {"$ref": "#"}),
)
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")


@dataclass(frozen=True)
class Request:
    """`sound` ones must be answered."""

    path: str
    body: bytes
    sound: bool
    stream: bool


def made(rng: random.Random) -> Request:
    """Half of them sound; the others with up to four mutations of the value, or a damaged text."""
    path = rng.choice(PATHS)
    value = base(path, rng)
    stream = value.get("stream") is True
    if rng.random() < 0.5:
        return Request(path, json.dumps(value).encode(), path in STREAMED, stream)
    for _ in range(rng.randint(1, 4)):
        value = mutated(value, rng)
    body = json.dumps(value).encode()
    if rng.random() < 0.2:
        body = damaged(body, rng)
    return Request(path, body, False, stream)


def base(path: str, rng: random.Random, *, every_field: bool = False) -> dict[str, Any]:
    """A sound request, with some of the fields that it may have, or with all."""
    required, optional = _BASES[path]
    chosen = {name: make(rng) for name, make in optional.items() if every_field or rng.random() < 0.3}
    return {name: make(rng) for name, make in required.items()} | chosen


def mutated(value: Any, rng: random.Random) -> Any:
    """The same JSON value with one place changed: replaced, removed, added to, or nested deeper."""
    places = list(_places(value, ()))
    place = rng.choice(places)
    match rng.randrange(5):
        case 0 if place:
            return _without(value, place)
        case 1:
            return _with(value, (*place, rng.choice(("unknown", "n", "api_base", "stream", "model", "\u0000"))), rng)
        case 2:
            return _replaced(value, place, lambda old: [old])
        case 3:
            return _replaced(value, place, lambda old: {"type": old})
        case _:
            return _replaced(value, place, lambda old: rng.choice(SCALARS))


def text_places(value: Any) -> list[tuple[Any, ...]]:
    """Where texts stand in it."""
    return [place for place in _places(value, ()) if isinstance(_at(value, place), str)]


def with_text(value: Any, place: tuple[Any, ...], text: str) -> Any:
    return _replaced(value, place, lambda old: text)


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        value = value[step]
    return value


def damaged(body: bytes, rng: random.Random) -> bytes:
    """A text that may be JSON no more."""
    at = rng.randrange(len(body) + 1)
    match rng.randrange(4):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + bytes((rng.randrange(256),)) + body[at:]
        case 2:
            return body[:at] + body[at + 1 :]
        case _:
            return body + rng.choice((b"}", b"\x00", b"\xff", b" 1", b"\xef\xbb\xbf"))


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    yield path
    if isinstance(value, dict):
        for name, one in cast("dict[str, Any]", value).items():
            yield from _places(one, (*path, name))
    elif isinstance(value, list):
        for index, one in enumerate(cast("list[Any]", value)):
            yield from _places(one, (*path, index))


def _replaced(value: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(value)
    copy = value.copy()
    copy[place[0]] = _replaced(value[place[0]], place[1:], change)
    return copy


def _without(value: Any, place: tuple[Any, ...]) -> Any:
    def drop(parent: Any) -> Any:
        copy = parent.copy()
        del copy[place[-1]]
        return copy

    return _replaced(value, place[:-1], drop)


def _with(value: Any, place: tuple[Any, ...], rng: random.Random) -> Any:
    def add(parent: Any) -> Any:
        new: Any = rng.choice(SCALARS)
        if isinstance(parent, dict):
            return cast("dict[str, Any]", parent) | {place[-1]: new}
        return [*cast("list[Any]", parent), new] if isinstance(parent, list) else new

    return _replaced(value, place[:-1], add)


# What is asked for, field by field.


def _one_of(*values: Any) -> Make:
    return lambda rng: rng.choice(values)


def _number(low: float, high: float) -> Make:
    return lambda rng: rng.choice((low, high, round(rng.uniform(low, high), 3)))


def _text(rng: random.Random) -> str:
    return rng.choice([text for text in TEXTS if text and "\ud800" not in text])


def _messages(rng: random.Random) -> list[dict[str, Any]]:
    def content() -> Any:
        return _text(rng) if rng.random() < 0.7 else [{"type": "text", "text": _text(rng)}]

    turns = [{"role": role, "content": content()} for role in ("user", "assistant") * rng.randint(0, 2)]
    return [*turns, {"role": "user", "content": content()}]


_TOOL: dict[str, Any] = {
    "name": "f",
    "description": "does it",
    "parameters": {"type": "object", "properties": {"a": {}}},
}
_SAMPLING: dict[str, Make] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "seed": _one_of(0, -1, 2**63 - 1),
    "stop": _one_of("zzz", ["zzz"], ["zzz", "yyy"]),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _one_of({}, {"5": -100}, {"7": 0.5}),
    "user": _one_of("somebody"),
    "stream": _one_of(True, False, None),
}
_TOKENS = _one_of(1, 2, 8, 100_000)
_MODEL = {"model": _one_of(MODEL)}
_BASES: dict[str, tuple[dict[str, Make], dict[str, Make]]] = {
    "/v1/chat/completions": (
        {**_MODEL, "messages": _messages},
        {
            **_SAMPLING,
            "max_tokens": _TOKENS,
            "max_completion_tokens": _TOKENS,
            "response_format": _one_of({"type": "text"}),
            "tools": _one_of([{"type": "function", "function": _TOOL}]),
            "parallel_tool_calls": _one_of(True, False),
        },
    ),
    "/v1/completions": ({**_MODEL, "prompt": _text}, {**_SAMPLING, "max_tokens": _TOKENS}),
    "/v1/messages": (
        {**_MODEL, "messages": _messages, "max_tokens": _TOKENS},
        {
            "system": _text,
            "temperature": _number(0, 1),
            "top_p": _number(0, 1),
            "stop_sequences": _one_of(["zzz"], []),
            "metadata": _one_of({"user_id": "somebody"}),
            "stream": _one_of(True, False),
        },
    ),
    "/v1/responses": (
        {**_MODEL, "input": _text},
        {
            "instructions": _text,
            "max_output_tokens": _TOKENS,
            "temperature": _number(0, 2),
            "store": _one_of(False),
            "stream": _one_of(True, False),
        },
    ),
    "/v1/messages/count_tokens": ({**_MODEL, "messages": _messages}, {"system": _text}),
    "/v1/embeddings": ({**_MODEL, "input": _text}, {"encoding_format": _one_of("float", "base64")}),
    "/v1/rerank": ({**_MODEL, "query": _text, "documents": _one_of(["a", "b"])}, {"top_n": _one_of(1, 2)}),
    "/tokenize": ({**_MODEL, "prompt": _text}, {}),
    "/detokenize": ({**_MODEL, "tokens": _one_of([1, 2])}, {}),
}
PATHS = tuple(_BASES)
