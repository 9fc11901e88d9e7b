"""The configuration file of the OpenVINO engine server: one strict JSON object, read by both of its processes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any, cast


class ConfigError(Exception):
    """The configuration file cannot be used; the message is one line that names the key."""


@dataclass(frozen=True)
class ServerConfig:
    """What the launcher decides. Every key is required, so that nothing effective is left to a hidden default.

    `address` is `unix:/path` or `127.0.0.1:port`. `kv_cache_bytes` bounds the paged KV pool. `max_batched_tokens` is
    the number of prompt tokens computed in one step, the knob between prefill speed and the stall other streams see.
    `context_tokens` bounds prompt plus output of one request. `properties` go to the OpenVINO plugin as they are.
    `speculative_tokens` are guessed ahead and verified in one step (0: none): by `draft_model`, a model file with the
    same tokenizer, or, where that is empty, looked up in the prompt and the answer so far. `default_temperature` and
    `default_top_p` hold where a request names none. `stall_s` is how long requests may wait without a finished step
    before /health says so.
    """

    model_path: str
    served_name: str
    address: str
    threads: int
    kv_cache_bytes: int
    max_batched_tokens: int
    max_sequences: int
    max_queued: int
    context_tokens: int
    prefix_cache: bool
    speculative_tokens: int
    draft_model: str
    properties: dict[str, str]
    stall_s: float
    default_temperature: float
    default_top_p: float

    @staticmethod
    def load(path: str) -> ServerConfig:
        try:
            with open(path, encoding="utf-8") as file:
                raw: Any = json.load(file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected a JSON object")
        return _checked(cast("dict[str, Any]", raw))


_MINIMUM = {
    "threads": 1,
    "kv_cache_bytes": 1,
    "max_batched_tokens": 32,  # one KV block: prompts are fed in whole blocks
    "max_sequences": 1,
    "max_queued": 0,
    "context_tokens": 2,
    "speculative_tokens": 0,
}


def _checked(raw: dict[str, Any]) -> ServerConfig:
    known = {field.name for field in fields(ServerConfig)}
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(f"unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if missing := sorted(known - raw.keys()):
        raise ConfigError(f"missing key {missing[0]!r}")
    for key in ("model_path", "served_name", "address"):
        if not isinstance(raw[key], str) or not raw[key]:
            raise ConfigError(f"{key} must be a non-empty string")
    for key, minimum in _MINIMUM.items():
        if type(raw[key]) is not int or raw[key] < minimum:
            raise ConfigError(f"{key} must be an integer of at least {minimum}")
    if type(raw["prefix_cache"]) is not bool:
        raise ConfigError("prefix_cache must be true or false")
    _check_speculation(raw)
    if type(raw["stall_s"]) not in (int, float) or not raw["stall_s"] > 0:
        raise ConfigError("stall_s must be a number above 0")
    for key, most in (("default_temperature", 2.0), ("default_top_p", 1.0)):
        if type(raw[key]) not in (int, float) or not 0 <= raw[key] <= most:
            raise ConfigError(f"{key} must be a number from 0 to {most:g}")
    properties: Any = raw["properties"]
    if not isinstance(properties, dict):
        raise ConfigError("properties must be an object")
    texts = {str(key): str(value) for key, value in cast("dict[object, object]", properties).items()}
    if not os.path.exists(raw["model_path"]):
        raise ConfigError(f"model_path {raw['model_path']} does not exist")
    values: dict[str, Any] = {**raw, "properties": texts}
    return ServerConfig(**values)


def _check_speculation(raw: dict[str, Any]) -> None:
    if not isinstance(raw["draft_model"], str):
        raise ConfigError("draft_model must be a path, or empty")
    if raw["draft_model"] and not raw["speculative_tokens"]:
        raise ConfigError("draft_model guesses nothing while speculative_tokens is 0")
    if raw["draft_model"] and not os.path.exists(raw["draft_model"]):
        raise ConfigError(f"draft_model {raw['draft_model']} does not exist")
    if raw["speculative_tokens"] and raw["prefix_cache"]:
        raise ConfigError("speculative_tokens wants prefix_cache false: a cached block might keep a rejected guess")
