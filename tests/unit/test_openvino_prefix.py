"""The mirror of the engine's prefix cache, the frames on the pipe, and the KV shape from a model's header."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import load_program

prefix = load_program("openvino_prefix")
channel = load_program("openvino_channel")
geometry = load_program("openvino_geometry")
config = load_program("openvino_config")


def remember(mirror: Any, tokens: list[int]) -> None:
    """A request that held these tokens and ended."""
    digests = prefix.chain(tokens)
    mirror.hold(digests)
    mirror.release(digests, digests[-1] if digests else b"", tokens[len(digests) * 32 :])


def test_a_known_prefix_is_restored_in_whole_blocks() -> None:
    mirror = prefix.PrefixMirror(100)
    remember(mirror, list(range(128)))
    assert mirror.restorable(list(range(128))) == 128
    assert mirror.restorable([*range(100), *range(500, 600)]) == 96
    assert mirror.restorable([9, *range(1, 128)]) == 0


def test_a_partly_filled_block_is_restored_when_its_whole_content_continues() -> None:
    mirror = prefix.PrefixMirror(100)
    remember(mirror, list(range(40)))
    assert mirror.restorable(list(range(40))) == 40
    assert mirror.restorable([*range(40), 7, 8]) == 40
    assert mirror.restorable([*range(39), 7, 8]) == 32


def test_a_tail_that_was_continued_is_gone() -> None:
    mirror = prefix.PrefixMirror(100)
    remember(mirror, list(range(40)))
    mirror.drop_tail(list(range(50)), 40)
    assert mirror.restorable(list(range(50))) == 32


def test_a_full_pool_forgets_what_was_never_asked_for_again_first() -> None:
    mirror = prefix.PrefixMirror(4)
    first, second = list(range(64)), list(range(1000, 1064))
    remember(mirror, first)
    remember(mirror, second)
    remember(mirror, first)
    remember(mirror, list(range(2000, 2064)))
    assert mirror.restorable(first) == 64
    assert mirror.restorable(second) == 0


def test_blocks_in_use_are_never_forgotten() -> None:
    mirror = prefix.PrefixMirror(2)
    held = list(range(64))
    mirror.hold(prefix.chain(held))
    remember(mirror, list(range(1000, 1064)))
    assert mirror.restorable(held) == 64


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=5), st.integers(1, 9))
def test_frames_survive_any_cut(messages: list[dict[str, str]], size: int) -> None:
    stream = b"".join(channel.frame(message) for message in messages)
    reader = channel.FrameReader()
    read: list[Any] = []
    for start in range(0, len(stream), size):
        read += reader.feed(stream[start : start + size])
    assert read == messages


def test_a_frame_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes on the pipe"):
        channel.FrameReader().feed(b"\xff\xff\xff\xff")


def gguf(values: dict[str, int | str | list[str]]) -> bytes:
    def string(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    out = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(values))
    for key, value in values.items():
        out += string(key)
        if isinstance(value, int):
            out += struct.pack("<II", 4, value)
        elif isinstance(value, str):
            out += struct.pack("<I", 8) + string(value)
        else:
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
    return out


def test_the_kv_shape_is_read_from_a_gguf_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    header: dict[str, int | str | list[str]] = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ["a", "b"],
        "llama.block_count": 30,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.embedding_length": 576,
    }
    path.write_bytes(gguf(header))
    shape = geometry.read_geometry(str(path))
    assert shape == geometry.KvGeometry(layers=30, kv_heads=3, key_width=64, value_width=64)
    assert shape.block_bytes("u8") == 437_760
    assert shape.block_bytes("f16") == 2 * 30 * 3 * 64 * 2 * 32


def test_the_kv_shape_is_read_from_the_config_of_an_ir_folder(tmp_path: Path) -> None:
    values = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert geometry.read_geometry(str(tmp_path)) == geometry.KvGeometry(2, 4, 32, 32)


def test_a_header_that_tells_nothing_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(geometry.GeometryError, match=r"model\.gguf"):
        geometry.read_geometry(str(path))


def settings(tmp_path: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "model_path": str(tmp_path),
        "served_name": "m",
        "address": "127.0.0.1:1",
        "threads": 1,
        "kv_cache_bytes": 1 << 20,
        "max_batched_tokens": 128,
        "max_sequences": 2,
        "max_queued": 2,
        "context_tokens": 128,
        "prefix_cache": True,
        "speculative_tokens": 0,
        "draft_model": "",
        "properties": {},
        "stall_s": 20,
        "default_temperature": 1.0,
        "default_top_p": 1.0,
        **changes,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"threads": None}, "missing key 'threads'"),
        ({"threads": 0}, "threads must be an integer of at least 1"),
        ({"max_batched_tokens": 31}, "max_batched_tokens must be"),
        ({"prefix_cache": 1}, "prefix_cache must be true or false"),
        ({"stall_s": 0}, "stall_s must be"),
        ({"properties": []}, "properties must be an object"),
        ({"model_path": "/nowhere/model.gguf"}, "does not exist"),
        ({"speculative_tokens": -1}, "speculative_tokens must be an integer of at least 0"),
        ({"draft_model": None}, "missing key 'draft_model'"),
        ({"draft_model": "/nowhere/draft.gguf"}, "guesses nothing while speculative_tokens is 0"),
        (
            {"draft_model": "/nowhere/draft.gguf", "speculative_tokens": 3, "prefix_cache": False},
            "draft_model /nowhere/draft.gguf does not exist",
        ),
        ({"speculative_tokens": 3}, "speculative_tokens wants prefix_cache false"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_the_key(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(config.ConfigError, match=words) as caught:
        config.ServerConfig.load(settings(tmp_path, **changes))
    assert "\n" not in str(caught.value)
