"""A strict reader of safetensors headers. It never touches tensor data and trusts no number in the file.

Format: https://huggingface.co/docs/safetensors: eight bytes of length, a JSON object, then the data, which the tensors
cover without hole or overlap."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from modelyard.errors import ModelRefused
from modelyard.models.json_files import JsonObject, is_array, is_object, parse_json_object

# The format allows 100 MB; the largest published ones are under 2 MB, and parsing costs ten times their size.
MAX_HEADER_BYTES = 16 << 20
MAX_DIMENSIONS = 32

DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """`offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_tensors(path: Path) -> tuple[Tensor, ...]:
    """The tensors of the file at `path`, in file order. Raises ModelRefused with the byte offset where that helps."""
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(_exactly(file.read(8), 8, path), "little")
            if length > min(MAX_HEADER_BYTES, file_bytes - 8):
                limit = min(MAX_HEADER_BYTES, file_bytes - 8)
                _refuse(path, f"at byte 0: a header of {length} bytes; expected at most {limit}")
            header = _exactly(file.read(length), length, path)
    except OSError as error:
        raise ModelRefused(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    if not header.startswith(b"{"):
        _refuse(path, "at byte 8: the header does not begin with '{'")
    return _covering(path, parse_json_object(header, str(path)), 8 + length, file_bytes)


def _covering(path: Path, header: JsonObject, data_start: int, file_bytes: int) -> tuple[Tensor, ...]:
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size_bytes))
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            _refuse(path, f"tensor {tensor.name!r} begins at byte {tensor.offset} and {kind}; expected byte {end}")
        end += tensor.size_bytes
    if end != file_bytes:
        _refuse(path, f"the tensors end at byte {end}; expected the end of the file, {file_bytes}")
    return tuple(tensors)


def _tensor(path: Path, name: str, entry: object, data_start: int) -> Tensor:
    what = f"tensor {name[:200]!r}"
    if not is_object(entry) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _refuse(path, f"{what} has the unknown dtype {str(dtype)[:40]!r}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse(path, f"{what} has no proper shape")
    if not _is_sizes(offsets) or len(offsets) != 2:
        _refuse(path, f"{what} has no proper data_offsets")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        _refuse(path, f"{what} has {end - begin} bytes of data, not what its shape and dtype need")
    return Tensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    """A list of integers that fit into signed 64 bits and are not negative. JSON's true is no integer."""
    return is_array(value) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _exactly(data: bytes, size: int, path: Path) -> bytes:
    if len(data) != size:
        _refuse(path, f"the file ends after {len(data)} of {size} expected header bytes")
    return data


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ModelRefused(f"{path}: {reason}", hint="the file is damaged: fetch it again from a source that you trust")
