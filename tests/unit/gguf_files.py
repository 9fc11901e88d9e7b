"""Writes tiny GGUF files for tests, well-formed or wrong in one chosen way."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
ALIGNMENT = 32

Value = tuple[int, object]


@dataclass(frozen=True)
class TensorSpec:
    """`offset` None: right behind the tensor before it, aligned."""

    name: str
    shape: tuple[int, ...]
    kind: int = 0
    size_bytes: int = 0
    offset: int | None = None


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: object) -> bytes:
    if kind == STRING:
        assert isinstance(content, str | bytes)
        return string(content)
    if kind == ARRAY:
        assert isinstance(content, tuple)
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack("<" + FORMATS[kind], content)


def entry(key: str | bytes, kind: int, content: object) -> bytes:
    return string(key) + struct.pack("<I", kind) + value(kind, content)


LLAMA: dict[str, Value] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, "Tiny"),
    "general.license": (STRING, "apache-2.0"),
    "general.file_type": (U32, 1),
    "llama.block_count": (U32, 2),
    "llama.context_length": (U32, 512),
    "llama.embedding_length": (U32, 64),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (U32, 2),
    "llama.rope.freq_base": (F32, 10000.0),
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "c"])),
    "tokenizer.chat_template": (STRING, "{{ messages }}"),
}
TENSORS = (TensorSpec("token_embd.weight", (64, 3), 1, 384), TensorSpec("blk.0.attn_norm.weight", (64,), 0, 256))


def gguf(
    metadata: Mapping[str, Value] = LLAMA,
    tensors: Sequence[TensorSpec] = TENSORS,
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    entry_count: int | None = None,
    tensor_count: int | None = None,
    extra_entries: Sequence[bytes] = (),
    data_bytes: int | None = None,
) -> bytes:
    """A whole file; each keyword overrules what would be right."""
    entries = [entry(key, kind, content) for key, (kind, content) in metadata.items()] + list(extra_entries)
    infos: list[bytes] = []
    end = 0
    for tensor in tensors:
        offset = end if tensor.offset is None else tensor.offset
        end = max(end, -(-(offset + tensor.size_bytes) // ALIGNMENT) * ALIGNMENT)
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos.append(string(tensor.name) + shape + struct.pack("<IQ", tensor.kind, offset))
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    header = head + b"".join(entries) + b"".join(infos)
    padding = -len(header) % ALIGNMENT
    return header + bytes(padding) + bytes(end if data_bytes is None else data_bytes)
