"""What a model is, read from its header alone: the numbers that planning needs and the facts that people ask for."""

from __future__ import annotations

import math
from typing import Literal

from modelyard.records.base import Record

ModelFormat = Literal["gguf", "huggingface"]
UNKNOWN = "unknown"


class Card(Record, tag_field="schema", tag="card/v1"):
    """A number that the header does not settle is None, never a guess.

    `weight_bytes` maps a tensor type (F16, Q4_1, BF16, ...) to its bytes. `kv_values_per_token` counts the elements
    that attention keeps per token over all layers, without any sliding window's saving; where it is None,
    `kv_unknown_because` says why. `chat_template_sha256` is over the template's UTF-8 text, which is never rendered
    here. `head_dim` is the length of a key; `value_dim` of a value."""

    format: ModelFormat
    architecture: str
    name: str
    layers: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    value_dim: int | None
    vocabulary: int | None
    context_tokens: int | None
    parameters: int | None
    weight_bytes: dict[str, int]
    kv_values_per_token: int | None
    kv_unknown_because: str = ""
    chat_template_sha256: str | None = None
    licence: str = UNKNOWN
    tokenizer: str = UNKNOWN
    rope: str = UNKNOWN
    quantisation: str = UNKNOWN

    @property
    def total_weight_bytes(self) -> int:
        return sum(self.weight_bytes.values())

    def kv_bytes_per_token(self, element_bytes: float) -> int | None:
        """Bytes of KV cache per token over all layers: sum over layers of kv_heads * (head_dim + value_dim) *
        `element_bytes`; for uniform layers the usual 2 * L * kv_heads * head_dim * e (Shazeer 2019,
        arXiv:1911.02150; Ainslie et al. 2023, arXiv:2305.13245). Scales of a quantised cache belong into
        `element_bytes`. None where the architecture keeps something else per token."""
        return None if self.kv_values_per_token is None else math.ceil(self.kv_values_per_token * element_bytes)

    @property
    def kv_bytes_per_token_f16(self) -> int | None:
        return self.kv_bytes_per_token(2)


def describe(card: Card) -> list[tuple[str, str]]:
    """Rows (label, text) for a terminal."""
    types = sorted(card.weight_bytes.items(), key=lambda item: -item[1])
    kv_bytes = card.kv_bytes_per_token_f16
    return [
        ("name", card.name),
        ("architecture", card.architecture),
        ("layers", f"{_number(card.layers)}, {_number(card.hidden)} wide"),
        ("attention", _attention(card)),
        ("vocabulary", _number(card.vocabulary)),
        ("context", f"{_number(card.context_tokens)} tokens"),
        ("parameters", _number(card.parameters)),
        ("quantisation", card.quantisation),
        ("weights", f"{_size(card.total_weight_bytes)} ({', '.join(f'{kind} {_size(size)}' for kind, size in types)})"),
        ("KV cache", f"{kv_bytes:,} bytes per token in F16" if kv_bytes else f"unknown: {card.kv_unknown_because}"),
        ("tokenizer", card.tokenizer),
        ("rope", card.rope),
        ("chat template", f"sha256 {card.chat_template_sha256[:16]}" if card.chat_template_sha256 else "none"),
        ("licence", card.licence),
    ]


def printable(text: str, limit: int = 200) -> str:
    """`text` from a foreign file, fit for a terminal, a log line and a record: one line, no control characters."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:limit])


def _attention(card: Card) -> str:
    return f"{_number(card.heads)} heads, {_number(card.kv_heads)} of them KV, {_number(card.head_dim)} wide"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _size(size_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"
