"""Tiny models for tests: a safetensors folder as a dict of files, and GGUF files of a given size."""

from __future__ import annotations

import json
import struct

from gguf_files import ALIGNMENT, LLAMA, TENSORS, TensorSpec, gguf

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3,
    "max_position_embeddings": 512,
}


def weights(name: str, elements: int) -> bytes:
    """A safetensors file with one BF16 tensor."""
    header = json.dumps({name: {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}}).encode()
    body = bytes(index * 7 % 251 for index in range(2 * elements))
    return struct.pack("<Q", len(header)) + header + body


def folder(elements: int = 1000, shards: int = 1, **more: bytes) -> dict[str, bytes]:
    """What a repository holds that was made by transformers."""
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": json.dumps({"model": {"vocab": {"auto_map": 7}}}).encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "Tiny"}).encode(),
        "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
    }
    if shards == 1:
        files["model.safetensors"] = weights("a", elements)
    else:
        names = {f"t{at}": f"model-{at:05d}-of-{shards:05d}.safetensors" for at in range(1, shards + 1)}
        files |= {name: weights(tensor, elements) for tensor, name in names.items()}
        files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    return files | {name.replace("__", "."): content for name, content in more.items()}


def gguf_of(size_bytes: int) -> bytes:
    """A whole GGUF file, a little larger than `size_bytes`; no two of its pages are alike."""
    rows = max(1, size_bytes // 256)
    plain = gguf(LLAMA, (*TENSORS, TensorSpec("filler.weight", (64, rows), 0, 256 * rows)))
    data = 384 + 256 + 256 * rows
    assert len(plain) % ALIGNMENT == 0
    return plain[:-data] + bytes((at * 31 + at // 4096) % 256 for at in range(data))
