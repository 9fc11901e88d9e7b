"""The configuration file of the OpenVINO engine server: one strict JSON object, read by both of its processes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from program_config import (
    ConfigError,
    check_draft,
    check_integers,
    check_model,
    check_numbers,
    check_switches,
    check_texts,
    read_object,
)


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
        """Raises ConfigError."""
        values = read_object(path, (field.name for field in fields(ServerConfig)))
        check_texts(values, "model_path", "served_name", "address")
        check_integers(values, _MINIMUM)
        check_switches(values, "prefix_cache")
        check_draft(values)
        if values["speculative_tokens"] and values["prefix_cache"]:
            raise ConfigError("speculative_tokens wants prefix_cache false: a cached block might keep a rejected guess")
        if type(values["stall_s"]) not in (int, float) or not values["stall_s"] > 0:
            raise ConfigError("stall_s must be a number above 0")
        check_numbers(values, {"default_temperature": 2.0, "default_top_p": 1.0})
        properties: Any = values["properties"]
        if not isinstance(properties, dict):
            raise ConfigError("properties must be an object")
        texts = {str(key): str(value) for key, value in cast("dict[object, object]", properties).items()}
        check_model(values["model_path"])
        whole: dict[str, Any] = {**values, "properties": texts}
        return ServerConfig(**whole)


_MINIMUM = {
    "threads": 1,
    "kv_cache_bytes": 1,
    "max_batched_tokens": 32,  # one KV block: prompts are fed in whole blocks
    "max_sequences": 1,
    "max_queued": 0,
    "context_tokens": 2,
    "speculative_tokens": 0,
}
