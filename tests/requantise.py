"""Writes a GGUF file again with its matrices in another type: `python requantise.py IN OUT F16|Q8_0`.

Standard library and numpy: run by the Python of an engine's environment. Layouts: ggml's `block_q4_1` (scale and
minimum in F16, 32 nibbles, the low ones first) and `block_q8_0` (scale in F16, 32 signed bytes)."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

FILE_TYPES = {"F16": 1, "Q8_0": 7}
KINDS = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 8}
NAMES = {number: name for name, number in KINDS.items()}
BLOCK_BYTES = {"Q4_1": 20, "Q8_0": 34}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def text(self) -> str:
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def skip_value(self, kind: int) -> None:
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            element, count = self.take("I"), self.take("Q")
            for _ in range(count):
                self.skip_value(element)
        else:
            self.take(SCALARS[kind])


def unpacked(raw: bytes, kind: str) -> np.ndarray:
    """The elements of a tensor, in F32."""
    if kind in ("F32", "F16"):
        return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[kind]).astype(np.float32)
    if kind == "Q8_0":
        blocks = np.frombuffer(raw, [("scale", "<f2"), ("bytes", "i1", 32)])
        return (blocks["bytes"] * blocks["scale"].astype(np.float32)[:, None]).ravel()
    blocks = np.frombuffer(raw, [("scale", "<f2"), ("least", "<f2"), ("nibbles", "u1", 16)])
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    scale, least = (blocks[name].astype(np.float32)[:, None] for name in ("scale", "least"))
    return (nibbles * scale + least).ravel()


def packed(values: np.ndarray, kind: str) -> bytes:
    if kind == "F16":
        return values.astype("<f2").tobytes()
    rows = values.reshape(-1, 32)
    blocks = np.zeros(len(rows), [("scale", "<f2"), ("bytes", "i1", 32)])
    blocks["scale"] = np.abs(rows).max(axis=1) / 127
    scale = blocks["scale"].astype(np.float32)
    blocks["bytes"] = np.round(rows / np.where(scale == 0, 1, scale)[:, None]).clip(-127, 127)
    return blocks.tobytes()


def size_of(elements: int, kind: str) -> int:
    return (
        elements * {"F32": 4, "F16": 2}[kind]
        if kind in ("F32", "F16")
        else elements // 32 * (20 if kind == "Q4_1" else 34)
    )


def requantised(data: bytes, wanted: str) -> bytes:
    reader = Reader(data)
    reader.at = 8
    tensors, entries = reader.take("Q"), reader.take("Q")
    metadata = bytearray(data[: reader.at])
    for _ in range(entries):
        began = reader.at
        key, kind = reader.text(), reader.take("I")
        value_at = reader.at
        reader.skip_value(kind)
        entry = bytearray(data[began : reader.at])
        if key == "general.file_type":
            struct.pack_into("<I", entry, value_at - began, FILE_TYPES[wanted])
        metadata += entry
    found = []
    for _ in range(tensors):
        name, rank = reader.text(), reader.take("I")
        shape = [reader.take("Q") for _ in range(rank)]
        found.append((name, shape, NAMES[reader.take("I")], reader.take("Q")))
    start = -(-reader.at // ALIGNMENT) * ALIGNMENT
    infos, body = bytearray(), bytearray()
    for name, shape, kind, offset in found:
        raw = data[start + offset : start + offset + size_of(int(np.prod(shape)), kind)]
        # Norms stay as they are, like in every file.
        becomes = kind if len(shape) == 1 else wanted
        new = raw if becomes == kind else packed(unpacked(raw, kind), becomes)
        infos += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", KINDS[becomes], len(body))
        body += new + bytes(-len(new) % ALIGNMENT)
    head = metadata + infos
    return bytes(head + bytes(-len(head) % ALIGNMENT) + body)


if __name__ == "__main__":
    source, target, wanted = sys.argv[1:]
    Path(target).write_bytes(requantised(Path(source).read_bytes(), wanted))
