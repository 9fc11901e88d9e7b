"""The only file that touches OpenVINO GenAI: loading, tokenising, submitting, stepping, and what is effective."""

from __future__ import annotations

import importlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

from openvino_config import ServerConfig
from openvino_geometry import read_geometry
from openvino_grammar import GrammarTrial
from openvino_prefix import BLOCK_TOKENS

_READABLE_PROPERTIES = (
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "ENABLE_CPU_PINNING",
    "ENABLE_HYPER_THREADING",
    "SCHEDULING_CORE_TYPE",
    "PERFORMANCE_HINT",
    "EXECUTION_MODE_HINT",
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "KEY_CACHE_PRECISION",
    "VALUE_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "OPTIMIZATION_CAPABILITIES",
    "FULL_DEVICE_NAME",
)
_ISA_FLAGS = ("sse4_2", "avx", "avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16")
_ISA_MATRIX_FLAGS = ("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve")

# How many tokens that were just written are looked for in what came before.
LOOKUP_NGRAM_TOKENS = 3

Report = Callable[[str, int, int, str], None]


class Unusable(Exception):
    """The client's request cannot be given to the engine; the message is fit for the client, `param` names a field.

    Without a `param` it is about the prompt.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


def import_genai() -> Any:
    """openvino_genai without its telemetry.

    `import openvino` pulls in the model converter, and that sends an event through openvino_telemetry at import. With
    the module blocked the converter falls back on its own silent stub; the rest of OpenVINO never asks for it.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino_genai")


class Engine:
    """A loaded model. `kv_blocks` blocks of 32 tokens make the pool that all sequences share."""

    def __init__(self, config: ServerConfig, report: Report) -> None:
        started = time.monotonic()
        report("import", 0, 3, "importing OpenVINO GenAI")
        self._genai = import_genai()
        self._openvino: Any = importlib.import_module("openvino")
        self._numpy: Any = importlib.import_module("numpy")
        self._config = config
        block_bytes = read_geometry(config.model_path).block_bytes(config.properties.get("KV_CACHE_PRECISION", "u8"))
        self.kv_blocks = config.kv_cache_bytes // block_bytes
        if self.kv_blocks < 4:
            raise ValueError(f"kv_cache_bytes {config.kv_cache_bytes} holds fewer than 4 blocks of {block_bytes} bytes")
        report("load", 1, 3, f"loading {config.model_path}")
        properties: dict[str, Any] = {**config.properties, "INFERENCE_NUM_THREADS": str(config.threads)}
        if config.draft_model:
            properties["draft_model"] = self._genai.draft_model(config.draft_model, "CPU")
        elif config.speculative_tokens:
            properties["prompt_lookup"] = True
        scheduler = self._scheduler()
        self._pipeline: Any = self._genai.ContinuousBatchingPipeline(config.model_path, scheduler, "CPU", properties)
        self._tokenizer: Any = self._pipeline.get_tokenizer()
        self._model_defaults: Any = self._pipeline.get_config()
        self.vocabulary_size: int = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self._pieces = self._byte_pieces()
        self.tokenizer_limit = self._find_tokenizer_limit()
        self._grammar = GrammarTrial(self._genai, self._tokenizer, self.vocabulary_size)
        report("warm", 2, 3, "first step, allocating the KV pool")
        self._warm()
        self.load_s = time.monotonic() - started
        report("warm", 3, 3, f"loaded in {self.load_s:.1f} s")

    def _scheduler(self) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = self._step_tokens()
        scheduler.max_num_seqs = self._config.max_sequences
        scheduler.num_kv_blocks = self.kv_blocks
        scheduler.enable_prefix_caching = self._config.prefix_cache
        scheduler.dynamic_split_fuse = True
        return scheduler

    def _step_tokens(self) -> int:
        """Decoding tokens, guesses among them, are scheduled before prompt tokens: with room for both, a prompt piece
        of max_batched_tokens always fits whole into the step it is submitted for."""
        return self._config.max_batched_tokens + self._config.max_sequences * (1 + self._config.speculative_tokens)

    def _generation_config(self, **fields: Any) -> Any:
        config = self._genai.GenerationConfig(**fields)
        if self._config.speculative_tokens:
            config.num_assistant_tokens = self._config.speculative_tokens
            config.max_ngram_size = 0 if self._config.draft_model else LOOKUP_NGRAM_TOKENS
        return config

    def _warm(self) -> None:
        config = self._generation_config(max_new_tokens=2, ignore_eos=True)
        self._pipeline.add_request(0, self._tensor([0, 1, 2]), config)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self.kv_bytes: int = self._pipeline.get_metrics().kv_cache_size_in_bytes

    def _byte_pieces(self) -> list[bytes] | None:
        """The bytes each token stands for, if joining them is exactly what the engine's detokeniser does, else None.

        Its detokeniser is an inference of its own and takes 0.3 ms of each step; joining bytes takes 2 us. Exact for
        byte-level vocabularies; one that strips or rewrites spaces shows it in some token decoded alone. Tokens that
        decode to nothing are special and stay hidden.
        """
        vocabulary: dict[bytes, int] = self._tokenizer.get_vocab()
        pieces = [b""] * self.vocabulary_size
        for piece, token in vocabulary.items():
            pieces[token] = piece
        alone: list[str] = self._tokenizer.decode([[token] for token in range(self.vocabulary_size)])
        for token, (piece, shown) in enumerate(zip(pieces, alone, strict=True)):
            if not shown and piece.decode("utf-8", "ignore"):
                pieces[token] = b""
            elif shown != piece.decode("utf-8", "ignore"):
                return None
        return pieces

    def _find_tokenizer_limit(self) -> int | None:
        """Where the tokenizer silently cuts a text: 8192 tokens, whatever is asked, for one made from a GGUF file."""
        text = " a" * 2 * self._config.context_tokens
        once, twice = len(self.encode(text)), len(self.encode(text + text))
        return once if once == twice else None

    def render_chat(self, messages: list[dict[str, Any]], begun: str = "", *, opening: bool = True) -> list[int]:
        """The prompt of an answer to `messages`, of which `begun` has been said. `opening` writes the beginning of the
        answer, too."""
        try:
            text: str = self._tokenizer.apply_chat_template(messages, add_generation_prompt=opening)
        except Exception as error:  # the template is the model's own program and may raise anything
            raise Unusable(f"the model's chat template refuses these messages: {error}") from error
        return self.encode(text + begun, special=False)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        if not text:
            return []
        return self._tokenizer.encode(text, add_special_tokens=special).input_ids.data[0].tolist()

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`, without the bytes of an unfinished character at either end."""
        if self._pieces is None:
            return self._tokenizer.decode(tokens)
        return b"".join([self._pieces[token] for token in tokens]).decode("utf-8", "ignore")

    def texts(self, sequences: list[list[int]]) -> list[str]:
        """The text of each, with the names of special tokens, which answers leave out."""
        return self._tokenizer.decode(sequences, skip_special_tokens=False) if sequences else []

    def generation(self, sampling: dict[str, Any], max_tokens: int, schema: str | None) -> Any:
        """A checked GenerationConfig of the wire's sampling fields; Unusable says what the engine does not accept."""
        config = self._generation_config()
        config.eos_token_id = self._model_defaults.eos_token_id
        config.stop_token_ids = self._model_defaults.stop_token_ids
        config.max_new_tokens = max_tokens
        temperature = sampling.get("temperature", 1.0)
        config.do_sample = temperature > 0
        if config.do_sample:
            config.temperature = temperature
            config.top_p = sampling.get("top_p", 1.0)
            config.min_p = sampling.get("min_p", 0.0)
            if sampling.get("top_k", -1) > 0:
                config.top_k = sampling["top_k"]
            # The engine's default seed is 0: without one of our own every unseeded request would draw the same text.
            config.rng_seed = sampling.get("seed", secrets.randbits(32)) % 2**32
        for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
            if name in sampling:
                setattr(config, name, sampling[name])
        param = "response_format"
        try:
            if schema is not None:
                config.structured_output_config = self._genai.StructuredOutputConfig(json_schema=schema)
                self._grammar.run(config.structured_output_config)
            param = "temperature"
            config.validate()
        except Exception as error:  # the engine raises RuntimeError for every refusal
            raise Unusable(f"the engine refuses these settings: {_reason(error)}", param=param) from error
        return config

    def greedy_single_token(self) -> Any:
        return self._genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)

    def submit(self, number: int, tokens: list[int], generation: Any) -> Any:
        """Restores what the prefix cache holds and queues the rest; returns the engine's handle."""
        return self._pipeline.add_request(number, self._tensor(tokens), generation)

    def _tensor(self, tokens: list[int]) -> Any:
        return self._openvino.Tensor(self._numpy.array([tokens], dtype=self._numpy.int64))

    def has_work(self) -> bool:
        return self._pipeline.has_non_finished_requests()

    def step(self) -> None:
        """One forward pass. Holds the interpreter lock from beginning to end."""
        self._pipeline.step()

    def outcome(self, handle: Any) -> tuple[list[int], str | None]:
        """(new tokens, finish reason: stop, length, or exhausted when the engine dropped it for lack of KV blocks)."""
        reasons = self._genai.GenerationFinishReason
        tokens: list[int] = []
        reason: str | None = None
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                if output.finish_reason == reasons.STOP:
                    reason = "stop"
                elif output.finish_reason == reasons.LENGTH:
                    reason = "length"
        if not tokens and reason is None and handle.get_status() == self._genai.GenerationStatus.IGNORED:
            reason = "exhausted"
        return tokens, reason

    def context_tokens(self) -> int:
        """Prompt plus output of one request: as configured, within the KV pool and what the tokenizer can count."""
        pool = (self.kv_blocks - 1) * BLOCK_TOKENS
        return min(self._config.context_tokens, pool, self.tokenizer_limit or pool)

    def effective(self) -> dict[str, Any]:
        """Everything that can change an answer or its speed, as far as the engine lets itself be asked."""
        core = self._openvino.Core()
        return {
            "engine": "openvino-genai",
            "versions": {"openvino_genai": self._genai.__version__, "openvino": self._openvino.__version__},
            "python": sys.version.split()[0],
            "model_path": self._config.model_path,
            "served_name": self._config.served_name,
            "properties": {**self._config.properties, "INFERENCE_NUM_THREADS": str(self._config.threads)},
            "device_defaults": {name: _readable(core, name) for name in _READABLE_PROPERTIES},
            "scheduler": {
                "prompt_tokens_per_step": self._config.max_batched_tokens,
                "max_num_batched_tokens": self._step_tokens(),
                "max_sequences": self._config.max_sequences,
                "max_queued": self._config.max_queued,
                "kv_blocks": self.kv_blocks,
                "kv_block_tokens": BLOCK_TOKENS,
                "kv_cache_bytes": self.kv_bytes,
                "prefix_cache": self._config.prefix_cache,
                "dynamic_split_fuse": True,
            },
            "speculation": {
                "tokens": self._config.speculative_tokens,
                "draft_model": self._config.draft_model,
                "lookup_ngram_tokens": LOOKUP_NGRAM_TOKENS,
            },
            "context_tokens": self.context_tokens(),
            "tokenizer_limit": self.tokenizer_limit,
            "chat_template": bool(self._tokenizer.chat_template),
            "eos_token_id": self._model_defaults.eos_token_id,
            "stop_token_ids": sorted(self._model_defaults.stop_token_ids),
            "isa": _instruction_sets(),
            "load_s": round(self.load_s, 3),
        }


def _reason(error: Exception) -> str:
    """The sentence of a C++ error, without the failed check and the source path that stand before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^.*\.(cc|cpp|h|hpp):\d+: ", "", lines[-1]) if lines else type(error).__name__


def _readable(core: Any, name: str) -> Any:
    try:
        value = core.get_property("CPU", name)
    except RuntimeError:  # a property this build of the plugin does not have: absent, not an error
        return None
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return str(value)


def _instruction_sets() -> list[str]:
    if not os.path.exists("/proc/cpuinfo"):
        return []
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    present = set(line.partition(":")[2].split())
    return [flag for flag in (*_ISA_FLAGS, *_ISA_MATRIX_FLAGS) if flag in present]
