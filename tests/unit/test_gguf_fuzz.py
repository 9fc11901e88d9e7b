"""Whatever bytes arrive: the header parses, or ModelRefused says why. Nothing else ever happens."""

from __future__ import annotations

import contextlib
import io
import tracemalloc

from gguf_files import gguf
from hypothesis import example, given
from hypothesis import strategies as st

from modelyard.errors import ModelRefused
from modelyard.models.card_gguf import card_of_header
from modelyard.models.gguf import parse_header
from modelyard.records.base import encode

GOOD = gguf()
MEMORY_BYTES = 4 << 20

edits = st.lists(
    st.tuples(
        st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=9) | st.sampled_from([b"\xff" * 8, bytes(8)])
    ),
    max_size=6,
)


def check(data: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelRefused):
            header = parse_header(io.BytesIO(data), len(data))
            end = 0
            for tensor in header.tensors:
                assert end <= tensor.offset <= tensor.offset + tensor.size_bytes <= len(data)
                end = tensor.offset + tensor.size_bytes
            encode(card_of_header(header, "fuzzed.gguf"))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()


@given(edits)
@example([])
def test_a_mutated_header_parses_or_is_refused(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(GOOD)
    for at, replacement in changes:
        data[at : at + len(replacement)] = replacement
    check(bytes(data))


@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_a_file_with_a_piece_cut_out_parses_or_is_refused(start: int, end: int) -> None:
    check(GOOD[:start] + GOOD[end:])


@given(st.binary(max_size=400))
def test_random_bytes_behind_the_magic_number_are_refused_or_parse(tail: bytes) -> None:
    check(b"GGUF\x03\x00\x00\x00" + tail)


def test_the_same_bytes_always_parse_to_the_same_header() -> None:
    assert parse_header(io.BytesIO(GOOD), len(GOOD)) == parse_header(io.BytesIO(GOOD), len(GOOD))
