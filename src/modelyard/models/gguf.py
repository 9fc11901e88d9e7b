"""A strict reader of GGUF headers (versions 2 and 3). It never touches tensor data and trusts no number in the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Stricter than the format where engines have been
hurt: every count, length and offset is checked against the file's size before it is used, duplicates and overlapping
tensors are refused. Reads through a small window instead of a memory map: a file that shrinks meanwhile is an error,
not a bus fault. Cost for a vocabulary of 300,000 entries: some 0.1 s and the window's memory."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modelyard.errors import ModelRefused
from modelyard.models.cursor import U32, U64, Cursor
from modelyard.models.ggml_types import TENSOR_TYPES, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_KEY_BYTES = 65_535
MAX_TENSOR_NAME_BYTES = 64
MAX_STRING_BYTES = 4 << 20
MAX_ENTRIES = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4
# Longer arrays (vocabularies, merges, scores) are checked and stepped over, not kept.
MAX_KEPT_ELEMENTS = 4_096

_SMALLEST_ENTRY_BYTES = 8 + 1 + 4 + 1
_SMALLEST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Array:
    """`values` is None where the array was too long to keep, or holds strings."""

    count: int
    values: tuple[Scalar, ...] | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is fastest dimension first, as in the file; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says about itself, checked: every tensor lies inside the file and none overlaps another."""

    version: int
    metadata: Mapping[str, Scalar | Array]
    tensors: tuple[Tensor, ...]
    header_bytes: int
    file_bytes: int


def read_header(path: Path) -> Header:
    """The header of the GGUF file at `path`. Raises ModelRefused with the byte offset and what was expected there."""
    try:
        with path.open("rb", buffering=0) as file:
            return parse_header(file, os.fstat(file.fileno()).st_size, name=path.name)
    except OSError as error:
        raise ModelRefused(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error


def parse_header(file: BinaryIO, file_bytes: int, *, name: str = "model") -> Header:
    """Like `read_header`, from an open file of `file_bytes` bytes. Errors call it `name`."""
    cursor = Cursor(file, file_bytes, name)
    version, tensor_count, entry_count = _read_preamble(cursor)
    metadata = _read_metadata(cursor, entry_count)
    alignment = _alignment(cursor, metadata)
    infos = _read_tensor_infos(cursor, tensor_count)
    header_bytes = cursor.at
    data_start = -(-header_bytes // alignment) * alignment
    tensors = _placed(cursor, infos, data_start, alignment)
    return Header(version, metadata, tensors, header_bytes, file_bytes)


def _read_preamble(cursor: Cursor) -> tuple[int, int, int]:
    """(version, number of tensors, number of metadata entries)"""
    index = cursor.need(4, "the magic number")
    if (found := cursor.window[index : index + 4]) != MAGIC:
        cursor.refuse(f"found {found!r}", expected=f"{MAGIC!r}", hint="this is not a GGUF file, whatever its name says")
    cursor.index += 4
    version = cursor.u32("the version")
    if version not in VERSIONS:
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        cursor.refuse(
            "the file is big-endian" if big_endian else f"GGUF version {version}",
            expected="version 2 or 3, little-endian",
            at=4,
            hint="convert the file again with a current llama.cpp",
        )
    tensors = _count(cursor, "tensors", MAX_TENSORS, _SMALLEST_TENSOR_BYTES)
    entries = _count(cursor, "metadata entries", MAX_ENTRIES, _SMALLEST_ENTRY_BYTES)
    return version, tensors, entries


def _count(cursor: Cursor, what: str, limit: int, smallest_bytes: int) -> int:
    start = cursor.at
    count = cursor.u64(f"the number of {what}")
    possible = min(limit, (cursor.file_bytes - cursor.at) // smallest_bytes)
    if count > possible:
        cursor.refuse(f"{count} {what}", expected=f"at most {possible} in a file of this size", at=start)
    return count


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Scalar | Array]:
    metadata: dict[str, Scalar | Array] = {}
    for _ in range(count):
        start = cursor.at
        key = cursor.text("a metadata key", MAX_KEY_BYTES)
        if not key or key in metadata:
            cursor.refuse(f"the metadata key {key!r} is empty or stands twice", expected="distinct keys", at=start)
        kind = cursor.u32(f"the type of {key!r}")
        metadata[key] = _read_array(cursor, key) if kind == _ARRAY else _read_scalar(cursor, kind, repr(key))
    return metadata


def _read_scalar(cursor: Cursor, kind: int, what: str) -> Scalar:
    if kind == _STRING:
        return cursor.text(what, MAX_STRING_BYTES)
    if kind not in _SCALARS:
        cursor.refuse(f"{what} has value type {kind}", expected="a type from 0 to 12", at=cursor.at - 4)
    value = cursor.scalar(_SCALARS[kind], what)
    if kind != _BOOL:
        return value
    if value > 1:
        cursor.refuse(f"{what} is a boolean of value {value}", expected="0 or 1", at=cursor.at - 1)
    return bool(value)


def _read_array(cursor: Cursor, key: str) -> Array:
    what = f"the array {key!r}"
    start = cursor.at
    kind = cursor.u32(f"the element type of {what}")
    if kind != _STRING and kind not in _SCALARS:
        cursor.refuse(f"{what} has element type {kind}", expected="scalars or strings, not nested arrays", at=start)
    count = cursor.u64(f"the length of {what}")
    smallest = 8 if kind == _STRING else _SCALARS[kind].size
    cursor.require(count * smallest, what)
    if kind == _STRING:
        cursor.skip_strings(count, what)
        return Array(count, None)
    if count > MAX_KEPT_ELEMENTS:
        cursor.skip(count * smallest, what)
        return Array(count, None)
    cursor.keep(count * 32, what)
    return Array(count, tuple(_read_scalar(cursor, kind, what) for _ in range(count)))


def _alignment(cursor: Cursor, metadata: Mapping[str, Scalar | Array]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, int) or value < 8 or value & (value - 1):
        cursor.refuse(f"general.alignment is {value!r}", expected="a power of two, at least 8")
    return value


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type: TensorType
    relative_offset: int
    size_bytes: int
    at: int


def _read_tensor_infos(cursor: Cursor, count: int) -> list[_TensorInfo]:
    infos: list[_TensorInfo] = []
    seen: set[str] = set()
    for _ in range(count):
        start = cursor.at
        name = cursor.text("a tensor name", MAX_TENSOR_NAME_BYTES)
        if not name or name in seen:
            cursor.refuse(f"the tensor name {name!r} is empty or stands twice", expected="distinct names", at=start)
        seen.add(name)
        shape = _read_shape(cursor, name)
        kind = cursor.u32(f"the type of tensor {name!r}")
        if kind not in TENSOR_TYPES:
            cursor.refuse(
                f"tensor {name!r} has the unknown type {kind}",
                expected="a ggml type that files carry",
                at=cursor.at - 4,
                hint="the file is damaged, or newer than this Modelyard",
            )
        size = _size_bytes(cursor, name, shape, TENSOR_TYPES[kind])
        offset = cursor.u64(f"the offset of tensor {name!r}")
        infos.append(_TensorInfo(name, shape, TENSOR_TYPES[kind], offset, size, start))
    return infos


def _read_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    dimensions = cursor.u32(f"the number of dimensions of tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        cursor.refuse(
            f"tensor {name!r} has {dimensions} dimensions", expected=f"1 to {MAX_DIMENSIONS}", at=cursor.at - 4
        )
    return tuple(cursor.u64(f"a dimension of tensor {name!r}") for _ in range(dimensions))


def _size_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], kind: TensorType) -> int:
    """Engines count elements in signed 64 bits; a product beyond that is the classic way to make them overflow."""
    elements = math.prod(shape)
    if not 0 < elements < 1 << 63:
        cursor.refuse(f"tensor {name!r} has shape {shape}", expected="between 1 and 2^63 elements")
    if shape[0] % kind.block_elements:
        cursor.refuse(
            f"tensor {name!r} has rows of {shape[0]} elements",
            expected=f"a multiple of {kind.block_elements}, the block of {kind.name}",
        )
    return elements // kind.block_elements * kind.block_bytes


def _placed(cursor: Cursor, infos: list[_TensorInfo], data_start: int, alignment: int) -> tuple[Tensor, ...]:
    """Absolute offsets, in file order; each tensor aligned, inside the file and behind the one before it."""
    end = data_start
    tensors: list[Tensor] = []
    for info in sorted(infos, key=lambda info: info.relative_offset):
        offset = data_start + info.relative_offset
        what = f"tensor {info.name!r} lies at {offset} to {offset + info.size_bytes}"
        if info.relative_offset % alignment:
            cursor.refuse(what, expected=f"an offset that is a multiple of {alignment}", at=info.at)
        if offset + info.size_bytes > cursor.file_bytes:
            cursor.refuse(what, expected=f"an end within the file's {cursor.file_bytes} bytes", at=info.at)
        if offset < end:
            cursor.refuse(what, expected=f"no overlap with the tensor that ends at {end}", at=info.at)
        end = offset + info.size_bytes
        tensors.append(Tensor(info.name, info.shape, info.type, offset, info.size_bytes))
    return tuple(tensors)
