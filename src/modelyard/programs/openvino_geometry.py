"""Bytes of one KV block, from the model's own header: needed because GenAI sizes its pool in whole GiB or in blocks.

Sizes follow the CPU plugin's paged layout, measured equal to `kv_cache_size_in_bytes` of the running pipeline. For u8
each key block of 32 tokens carries an f32 scale and zero point per channel, each value token one pair per head.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from openvino_prefix import BLOCK_TOKENS

_SCALE_AND_ZERO_BYTES = 8
_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GeometryError(Exception):
    """The model's header does not tell the shape of its KV cache."""


@dataclass(frozen=True)
class KvGeometry:
    layers: int
    kv_heads: int
    key_width: int
    value_width: int

    def block_bytes(self, precision: str) -> int:
        if precision in _FLOAT_BYTES:
            per_head = BLOCK_TOKENS * (self.key_width + self.value_width) * _FLOAT_BYTES[precision]
        elif precision == "u8":
            keys = self.key_width * (BLOCK_TOKENS + _SCALE_AND_ZERO_BYTES)
            per_head = keys + BLOCK_TOKENS * (self.value_width + _SCALE_AND_ZERO_BYTES)
        else:
            known = ", ".join(("u8", *_FLOAT_BYTES))
            raise GeometryError(f"KV_CACHE_PRECISION {precision!r} is not one of {known}")
        return self.layers * self.kv_heads * per_head


def read_geometry(model_path: str) -> KvGeometry:
    """Of a GGUF file or of an OpenVINO IR folder (its config.json)."""
    try:
        return _from_config(model_path) if os.path.isdir(model_path) else _from_gguf(model_path)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise GeometryError(f"cannot read the KV shape of {model_path}: {type(error).__name__}: {error}") from error


def _from_config(folder: str) -> KvGeometry:
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    return KvGeometry(int(config["num_hidden_layers"]), int(config.get("num_key_value_heads") or heads), width, width)


def _from_gguf(path: str) -> KvGeometry:
    with open(path, "rb") as file:
        magic, _version, _tensors, count = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF":
            raise ValueError("not a GGUF file")
        values: dict[str, Any] = {}
        for _ in range(count):
            key = _read_string(file).decode()
            values[key] = _read_value(file, struct.unpack("<I", file.read(4))[0])
    arch = values["general.architecture"].decode()
    heads = int(values[f"{arch}.attention.head_count"])
    width = int(values[f"{arch}.embedding_length"]) // heads
    return KvGeometry(
        layers=int(values[f"{arch}.block_count"]),
        kv_heads=int(values.get(f"{arch}.attention.head_count_kv", heads)),
        key_width=int(values.get(f"{arch}.attention.key_length", width)),
        value_width=int(values.get(f"{arch}.attention.value_length", width)),
    )


def _read_string(file: BinaryIO) -> bytes:
    (size,) = struct.unpack("<Q", file.read(8))
    if size > 1 << 24:
        raise ValueError(f"a string of {size} bytes in the header")
    return file.read(size)


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", file.read(12))
        if inner in _SCALARS:
            file.seek(length * struct.calcsize("<" + _SCALARS[inner]), os.SEEK_CUR)
        else:
            for _ in range(length):
                _read_value(file, inner)
        return None
    code = "<" + _SCALARS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]
