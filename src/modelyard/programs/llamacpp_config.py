"""The configuration file of the llama.cpp engine server, read by both of its processes."""

from __future__ import annotations

from dataclasses import dataclass, fields

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

# Where llama-server listens, in the folder that both processes run in: a relative path is never too long for a socket.
SOCKET = "llama.sock"
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH_ATTENTION = ("on", "off")


@dataclass(frozen=True)
class ServerConfig:
    """What the launcher decides. Every key is required, so that nothing effective is left to a hidden default.

    `address` is `unix:/path` or `127.0.0.1:port`. `context_tokens` bounds prompt plus output of one request; each of
    the `max_sequences` slots has KV cache for all of it, of `cache_type_k` and `cache_type_v`. `max_batched_tokens` is
    how many prompt tokens are computed in one step, the knob between prefill speed and the stall other streams see.
    `speculative_tokens` are guessed ahead and verified in one step (0: none): by `draft_model`, a model file with the
    same vocabulary, or, where that is empty, looked up in the prompt and the answer so far. `default_temperature` and
    `default_top_p` hold where a request names none.
    """

    model_path: str
    served_name: str
    address: str
    threads: int
    max_batched_tokens: int
    max_sequences: int
    max_queued: int
    context_tokens: int
    cache_type_k: str
    cache_type_v: str
    flash_attention: str
    prefix_cache: bool
    speculative_tokens: int
    draft_model: str
    default_temperature: float
    default_top_p: float

    @staticmethod
    def load(path: str) -> ServerConfig:
        """Raises ConfigError."""
        values = read_object(path, (field.name for field in fields(ServerConfig)))
        check_texts(values, "model_path", "served_name", "address")
        check_integers(
            values,
            {
                "threads": 1,
                "max_batched_tokens": 1,
                "max_sequences": 1,
                "max_queued": 0,
                "context_tokens": 2,
                "speculative_tokens": 0,
            },
        )
        check_switches(values, "prefix_cache")
        check_numbers(values, {"default_temperature": 2.0, "default_top_p": 1.0})
        for key, known in (
            ("cache_type_k", CACHE_TYPES),
            ("cache_type_v", CACHE_TYPES),
            ("flash_attention", FLASH_ATTENTION),
        ):
            if values[key] not in known:
                raise ConfigError(f"{key} must be one of {', '.join(known)}")
        if values["max_batched_tokens"] < values["max_sequences"]:
            raise ConfigError("max_batched_tokens must be at least max_sequences: each needs a token of every step")
        check_model(values["model_path"])
        check_draft(values)
        return ServerConfig(**values)
