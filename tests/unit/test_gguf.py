"""GGUF headers: what is read, and that every lie is refused with the place where it stands."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import pytest
from gguf_files import ARRAY, BOOL, F32, I32, LLAMA, STRING, TENSORS, U8, U32, U64, TensorSpec, entry, gguf, string

from modelyard.errors import ModelRefused
from modelyard.models.cursor import MAX_HEADER_BYTES, MAX_KEPT_BYTES
from modelyard.models.ggml_types import TENSOR_TYPES
from modelyard.models.gguf import Array, Header, parse_header, read_header


def parse(data: bytes) -> Header:
    return parse_header(io.BytesIO(data), len(data))


def refusal(data: bytes) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        parse(data)
    assert "at byte" in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("version", [2, 3])
def test_a_well_formed_header_is_read(version: int) -> None:
    header = parse(gguf(version=version))
    assert header.version == version
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == Array(3, None)
    assert [(tensor.name, tensor.shape, tensor.type.name) for tensor in header.tensors] == [
        ("token_embd.weight", (64, 3), "F16"),
        ("blk.0.attn_norm.weight", (64,), "F32"),
    ]
    assert header.tensors[0].offset % 32 == 0
    assert header.tensors[1].offset == header.tensors[0].offset + 384
    assert header.tensors[1].offset + 256 == header.file_bytes


def test_every_kind_of_value_is_read() -> None:
    values = {
        "k.true": (BOOL, 1),
        "k.small": (U8, 255),
        "k.signed": (I32, -5),
        "k.large": (U64, 1 << 40),
        "k.float": (F32, 0.5),
        "k.text": (STRING, "häl\n"),
        "k.list": (ARRAY, (I32, [1, -2])),
    }
    metadata = parse(gguf(LLAMA | values)).metadata
    assert metadata["k.true"] is True
    assert (metadata["k.small"], metadata["k.signed"], metadata["k.large"]) == (255, -5, 1 << 40)
    assert (metadata["k.float"], metadata["k.text"]) == (0.5, "häl\n")
    assert metadata["k.list"] == Array(2, (1, -2))


def test_long_arrays_are_stepped_over_across_the_windows_edges() -> None:
    tokens = [f"token-{number}" * (number % 7) for number in range(60_000)]
    values = {"k.tokens": (ARRAY, (STRING, tokens)), "k.scores": (ARRAY, (F32, [0.5] * 60_000)), "k.end": (U32, 7)}
    metadata = parse(gguf(LLAMA | values)).metadata
    assert metadata["k.tokens"] == Array(60_000, None)
    assert metadata["k.scores"] == Array(60_000, None)
    assert metadata["k.end"] == 7


def test_every_truncation_is_refused_with_the_offset() -> None:
    data = gguf()
    for size in range(len(data)):
        message = refusal(data[:size]).message
        assert any(words in message for words in ("the file ends at", "in a file of this size", "end within the file"))


def test_what_is_no_gguf_is_refused_by_its_magic_number() -> None:
    assert "GGUF" in refusal(gguf(magic=b"GGML")).message


@pytest.mark.parametrize("version", [0, 1, 4])
def test_other_versions_are_refused(version: int) -> None:
    assert f"version {version}" in refusal(gguf(version=version)).message


def test_a_big_endian_file_is_refused_as_such() -> None:
    assert "big-endian" in refusal(gguf(version=0x03000000)).message


@pytest.mark.parametrize("count", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_absurd_counts_are_refused_before_anything_is_allocated(count: int) -> None:
    tracemalloc.start()
    try:
        refusal(gguf(entry_count=count))
        refusal(gguf(tensor_count=count))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_absurd_lengths_of_strings_and_arrays_are_refused(length: int) -> None:
    key = string("k")
    refusal(gguf(extra_entries=[struct.pack("<Q", length)]))
    refusal(gguf(extra_entries=[key + struct.pack("<IQ", STRING, length)]))
    for element in (U8, STRING, U64):
        refusal(gguf(extra_entries=[key + struct.pack("<IIQ", ARRAY, element, length)]))
    refusal(gguf(extra_entries=[key + struct.pack("<IIQQ", ARRAY, STRING, 1, length)]))


@pytest.mark.parametrize("length", [100, 1 << 40, (1 << 64) - 9])
def test_a_last_value_that_reaches_beyond_the_file_is_refused(length: int) -> None:
    """Nothing follows that would stumble over it."""
    for value in (struct.pack("<IIQQ", ARRAY, STRING, 1, length), struct.pack("<IIQ", ARRAY, U64, length)):
        data = gguf({}, [], extra_entries=[string("k") + value], data_bytes=0)
        assert "the file ends at" in refusal(data).message


def test_nested_arrays_and_unknown_types_are_refused() -> None:
    key = string("k")
    assert "nested" in refusal(gguf(extra_entries=[key + struct.pack("<IIQ", ARRAY, ARRAY, 0)])).message
    assert "type 13" in refusal(gguf(extra_entries=[key + struct.pack("<I", 13)])).message


def test_duplicate_keys_and_tensor_names_are_refused() -> None:
    assert "twice" in refusal(gguf(extra_entries=[entry("general.name", STRING, "again")])).message
    assert "twice" in refusal(gguf(tensors=[TENSORS[0], TENSORS[0]])).message


def test_text_must_be_utf8_and_booleans_zero_or_one() -> None:
    assert "UTF-8" in refusal(gguf(extra_entries=[entry("k", STRING, b"\xff\xfe")])).message
    assert "UTF-8" in refusal(gguf(extra_entries=[entry(b"\xff", U8, 1)])).message
    assert "boolean" in refusal(gguf(extra_entries=[entry("k", BOOL, 2)])).message


@pytest.mark.parametrize("alignment", [(U32, 0), (U32, 1), (U32, 24), (STRING, "32"), (I32, -32), (F32, 32.0)])
def test_a_wrong_alignment_is_refused(alignment: tuple[int, object]) -> None:
    assert "alignment" in refusal(gguf(LLAMA | {"general.alignment": alignment})).message


def test_another_alignment_moves_the_data() -> None:
    data = gguf(LLAMA | {"general.alignment": (U32, 64)}, [TensorSpec("t", (8,), 0, 32)], data_bytes=128)
    assert parse(data).tensors[0].offset % 64 == 0


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1, 1), (0,), (4, 0), (1 << 63,), (1 << 32, 1 << 32), (1 << 64 - 1, 2)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    refusal(gguf(tensors=[TensorSpec("t", shape, 0, 64)]))


def test_a_product_that_overflows_64_bits_to_a_small_size_is_refused() -> None:
    """Elements * 4 bytes wraps to 0 in 64-bit arithmetic; ours does not wrap."""
    assert "2^63" in refusal(gguf(tensors=[TensorSpec("t", (1 << 31, 1 << 31, 4), 0, 0)])).message
    assert "end within the file" in refusal(gguf(tensors=[TensorSpec("t", (1 << 31, 1 << 31), 0, 0)])).message


def test_unknown_tensor_types_are_refused() -> None:
    for kind in (4, 5, 9, 15, 31, 999):
        assert f"type {kind}" in refusal(gguf(tensors=[TensorSpec("t", (256,), kind, 1024)])).message


def test_rows_must_be_whole_blocks() -> None:
    assert "multiple of 32" in refusal(gguf(tensors=[TensorSpec("t", (33,), 3, 64)])).message


@pytest.mark.parametrize("kind", sorted(TENSOR_TYPES))
def test_the_size_of_every_type_is_bounded_by_the_file_to_the_byte(kind: int) -> None:
    traits = TENSOR_TYPES[kind]
    spec = TensorSpec("t", (traits.block_elements * 2, 3), kind, traits.block_bytes * 6)
    assert parse(gguf(tensors=[spec], data_bytes=spec.size_bytes)).tensors[0].size_bytes == spec.size_bytes
    assert "end within" in refusal(gguf(tensors=[spec], data_bytes=spec.size_bytes - 1)).message


@pytest.mark.parametrize("offset", [1 << 20, (1 << 64) - 32, (1 << 63)])
def test_offsets_beyond_the_file_are_refused(offset: int) -> None:
    assert "end within" in refusal(gguf(tensors=[TensorSpec("t", (8,), 0, 32, offset=offset)], data_bytes=64)).message


def test_unaligned_offsets_are_refused() -> None:
    assert "multiple of 32" in refusal(gguf(tensors=[TensorSpec("t", (8,), 0, 32, offset=4)])).message


def test_overlapping_tensors_are_refused_in_whatever_order_they_stand() -> None:
    first, second = TensorSpec("a", (16,), 0, 64, offset=0), TensorSpec("b", (16,), 0, 64, offset=32)
    for tensors in ([first, second], [second, first]):
        assert "overlap" in refusal(gguf(tensors=tensors)).message


def test_a_header_that_would_fill_the_memory_is_refused() -> None:
    piece = "x" * (1 << 20)
    values = {f"k.{number}": (STRING, piece) for number in range(MAX_KEPT_BYTES // len(piece) + 1)}
    assert str(MAX_KEPT_BYTES) in refusal(gguf(LLAMA | values)).message


def test_a_header_that_would_take_minutes_is_refused(tmp_path: Path) -> None:
    """A sparse file: the array of strings is all zeros, so every string in it is empty."""
    count = MAX_HEADER_BYTES // 8
    data = gguf(extra_entries=[string("k") + struct.pack("<IIQ", ARRAY, STRING, count)], data_bytes=0)
    path = tmp_path / "long.gguf"
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER_BYTES * 2)
    with pytest.raises(ModelRefused, match="header of at most"):
        read_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash() -> None:
    data = gguf()
    with pytest.raises(ModelRefused, match="shrink"):
        parse_header(io.BytesIO(data[:100]), len(data))


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
