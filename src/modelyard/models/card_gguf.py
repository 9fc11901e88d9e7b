"""The card of a GGUF file."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import NoReturn

from modelyard.errors import ModelRefused
from modelyard.models.card import UNKNOWN, Card, printable
from modelyard.models.ggml_types import FILE_TYPES
from modelyard.models.gguf import Array, Header, Scalar, read_header

# Architectures whose every layer keeps plain keys and values for every token. Others are said to be unknown.
STANDARD_ATTENTION = frozenset(
    ("granite", "llama", "minimax-m2", "mistral3", "olmo2", "phi3", "smollm3", "starcoder2")
) | frozenset(("qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe"))
MAX_LAYERS = 4_096
# Beyond it no real count lies, and every product of a few of them still fits into 64 bits of an engine or a database.
MAX_NUMBER = 1 << 31


def card_of_gguf(path: Path) -> Card:
    """Raises ModelRefused where the header is damaged or does not describe a whole text model."""
    return card_of_header(read_header(path), path.name)


def card_of_header(header: Header, file_name: str) -> Card:
    """`file_name` serves errors, and as the name of a model that has none."""
    facts = _Facts(header, file_name)
    architecture = printable(facts.text("general.architecture"))
    if not architecture:
        facts.refuse("general.architecture is missing", "the name of the architecture")
    facts.refuse_parts(architecture)
    layers = facts.required(f"{architecture}.block_count")
    if layers > MAX_LAYERS:
        facts.refuse(f"{architecture}.block_count is {layers}", f"at most {MAX_LAYERS}")
    hidden = facts.required(f"{architecture}.embedding_length")
    heads = facts.per_layer(f"{architecture}.attention.head_count", layers)
    kv_heads = facts.per_layer(f"{architecture}.attention.head_count_kv", layers) or heads
    default_dim = hidden // max(heads) if any(heads) else None
    head_dim = facts.number(f"{architecture}.attention.key_length") or default_dim
    value_dim = facts.number(f"{architecture}.attention.value_length") or default_dim
    unknown = _why_unknown(facts, architecture)
    kv_values = sum(kv_heads) * ((head_dim or 0) + (value_dim or 0))
    if not unknown and not kv_values:
        unknown = "the header does not give the number of heads and their size"
    return Card(
        format="gguf",
        architecture=architecture,
        name=printable(facts.text("general.name")) or printable(file_name.removesuffix(".gguf")),
        layers=layers,
        hidden=hidden,
        heads=max(heads, default=None),
        kv_heads=max(kv_heads, default=None),
        head_dim=head_dim,
        value_dim=value_dim,
        vocabulary=facts.vocabulary(architecture),
        context_tokens=facts.required(f"{architecture}.context_length"),
        parameters=sum(tensor.elements for tensor in header.tensors),
        weight_bytes=_weight_bytes(header),
        kv_values_per_token=None if unknown else kv_values,
        kv_unknown_because=unknown,
        chat_template_sha256=facts.chat_template_sha256(),
        licence=printable(facts.text("general.license")) or UNKNOWN,
        tokenizer=_tokenizer(facts),
        rope=_rope(header, architecture),
        quantisation=_quantisation(facts, header),
    )


class _Facts:
    """The metadata by key and kind: a value of another kind is refused."""

    def __init__(self, header: Header, file_name: str) -> None:
        self._metadata = header.metadata
        self._file_name = file_name

    def refuse(self, found: str, expected: str, hint: str = "") -> NoReturn:
        raise ModelRefused(
            f"{self._file_name}: {found}; expected {expected}",
            hint=hint or "the file is damaged or is no text model: fetch it again, or convert it again",
        )

    def has(self, key: str) -> bool:
        return key in self._metadata

    def text(self, key: str) -> str:
        """Empty where the key is absent."""
        value = self._metadata.get(key, "")
        if not isinstance(value, str):
            self.refuse(f"{key} is {value!r}", "text")
        return value

    def number(self, key: str) -> int | None:
        value = self._metadata.get(key)
        return None if value is None else self._counted(key, value)

    def required(self, key: str) -> int:
        value = self.number(key)
        if not value:
            self.refuse(f"{key} is missing or zero", "a whole number")
        return value

    def per_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """One number per layer, whether the file says it once or layer by layer; empty where it is absent."""
        value = self._metadata.get(key)
        if value is None:
            return ()
        if not isinstance(value, Array):
            return (self._counted(key, value),) * layers
        if value.count != layers or value.values is None:
            self.refuse(f"{key} has {value.count} values", f"one for each of the {layers} layers")
        return tuple(self._counted(key, item) for item in value.values)

    def _counted(self, key: str, value: Scalar | Array) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
            self.refuse(f"{key} is {value!r}", f"a whole number below {MAX_NUMBER}")
        return value

    def vocabulary(self, architecture: str) -> int | None:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        return tokens.count if isinstance(tokens, Array) else self.number(f"{architecture}.vocab_size")

    def chat_template_sha256(self) -> str | None:
        template = self.text("tokenizer.chat_template")
        return hashlib.sha256(template.encode()).hexdigest() if template else None

    def refuse_parts(self, architecture: str) -> None:
        """A part of a model has a header like a whole one, and would be planned as if it were one."""
        kind = self.text("general.type") or "model"
        if kind != "model" or architecture == "clip":
            self.refuse(f"this is a {printable(kind)} of architecture {architecture}", "a whole text model")
        if (parts := self.number("split.count") or 1) > 1:
            self.refuse(f"this is one of {parts} parts", "a model in one file", "join them: llama-gguf-split --merge")


def _why_unknown(facts: _Facts, architecture: str) -> str:
    """Why plain attention over every token is not certain; empty where it is."""
    if facts.has(f"{architecture}.attention.kv_lora_rank"):
        return "latent attention (MLA) keeps a compressed vector per token"
    if facts.number(f"{architecture}.attention.sliding_window"):
        return "some layers keep only a sliding window"
    if architecture not in STANDARD_ATTENTION:
        return f"the attention of architecture {architecture} is not known to this version"
    return ""


def _weight_bytes(header: Header) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.size_bytes
    return dict(sizes)


def _quantisation(facts: _Facts, header: Header) -> str:
    """The label people use for the whole file; else the type that holds most bytes."""
    label = FILE_TYPES.get(facts.number("general.file_type") or 0) if facts.has("general.file_type") else None
    sizes = _weight_bytes(header)
    return label or max(sizes, key=lambda name: sizes[name], default=UNKNOWN)


def _rope(header: Header, architecture: str) -> str:
    base = header.metadata.get(f"{architecture}.rope.freq_base")
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type")
    words = [f"base {base:g}"] if isinstance(base, float) else []
    words += [f"scaling {printable(scaling)}"] if isinstance(scaling, str) and scaling != "none" else []
    return ", ".join(words) or UNKNOWN


def _tokenizer(facts: _Facts) -> str:
    words = (facts.text("tokenizer.ggml.model"), facts.text("tokenizer.ggml.pre"))
    return printable(" ".join(word for word in words if word)) or UNKNOWN
