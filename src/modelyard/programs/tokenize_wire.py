"""/tokenize and /detokenize in vLLM's shape, as pure functions: bodies to checked asks, tokens to answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from http1 import BadRequest
from openai_wire import MAX_MESSAGES, parse_object

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
MAX_TOKENS = 1 << 20


@dataclass(frozen=True)
class Count:
    """What shall be cut into tokens: `text`, or `messages` (with `tools`) as the model's template writes them.
    `special` adds what the tokenizer puts around a text; `opening` the beginning of the answer."""

    text: str | None
    messages: list[Any]
    tools: list[Any]
    special: bool
    opening: bool
    strings: bool


def parse_tokenize(body: bytes, served_name: str) -> Count:
    """Raises BadRequest."""
    fields = _fields(body, served_name)
    prompt, messages, tools = fields.get("prompt"), fields.get("messages"), fields.get("tools")
    if (prompt is None) == (messages is None):
        raise BadRequest("either prompt or messages is needed", param="prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise BadRequest("prompt must be a string", param="prompt")
    if messages is not None and not (
        isinstance(messages, list) and 0 < len(cast("list[Any]", messages)) <= MAX_MESSAGES
    ):
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES}", param="messages")
    if tools is not None and not isinstance(tools, list):
        raise BadRequest("tools must be a list", param="tools")
    return Count(
        prompt,
        cast("list[Any]", messages or []),
        cast("list[Any]", tools or []),
        special=_flag(fields, "add_special_tokens", usually=prompt is not None),
        opening=_flag(fields, "add_generation_prompt", usually=True),
        strings=_flag(fields, "return_token_strs", usually=False),
    )


def parse_detokenize(body: bytes, served_name: str) -> list[int]:
    """The token ids. Raises BadRequest."""
    tokens = _fields(body, served_name).get("tokens")
    listed: list[Any] = cast("list[Any]", tokens) if isinstance(tokens, list) else [None]
    if len(listed) > MAX_TOKENS or not all(type(token) is int and token >= 0 for token in listed):
        raise BadRequest(f"tokens must be a list of up to {MAX_TOKENS} token ids", param="tokens")
    return listed


def counted(tokens: list[int], context_tokens: int, strings: list[str] | None) -> dict[str, Any]:
    return {"count": len(tokens), "max_model_len": context_tokens, "tokens": tokens, "token_strs": strings}


def _fields(body: bytes, served_name: str) -> dict[str, Any]:
    fields = parse_object(body)
    model = fields.get("model", served_name)
    if model != served_name:
        raise BadRequest(f"The model `{model}` does not exist.", status=404, param="model", code="model_not_found")
    return fields


def _flag(fields: dict[str, Any], name: str, *, usually: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return usually
    if type(value) is not bool:
        raise BadRequest(f"{name} must be true or false", param=name)
    return value
