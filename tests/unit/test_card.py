"""Cards: the numbers of models, from headers alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from pathlib import Path

import pytest
from gguf_files import ARRAY, I32, LLAMA, STRING, U32, Value, gguf
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import ModelRefused
from modelyard.models.card import Card, describe
from modelyard.models.card_huggingface import card_of_config, card_of_folder
from modelyard.models.json_files import JsonObject, read_json_object
from modelyard.models.reader import read_card
from modelyard.models.safetensors import read_tensors
from modelyard.records.base import decode, encode

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "model_configs"

QWEN3: JsonObject = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "use_sliding_window": False,
    "sliding_window": 4096,
}


def card_of(tmp_path: Path, changes: dict[str, Value] | None = None, without: tuple[str, ...] = ()) -> Card:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf({key: value for key, value in (LLAMA | (changes or {})).items() if key not in without}))
    return read_card(path)


def test_the_card_of_a_gguf_file_has_every_number(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert (card.format, card.architecture, card.name, card.licence) == ("gguf", "llama", "Tiny", "apache-2.0")
    assert (card.layers, card.hidden, card.heads, card.kv_heads, card.head_dim) == (2, 64, 4, 2, 16)
    assert (card.vocabulary, card.context_tokens, card.parameters) == (3, 512, 64 * 3 + 64)
    assert card.weight_bytes == {"F16": 384, "F32": 256}
    assert card.total_weight_bytes == 640
    assert card.kv_bytes_per_token_f16 == 2 * 2 * 2 * 16 * 2
    assert card.kv_bytes_per_token(1) == 2 * 2 * 2 * 16
    assert card.chat_template_sha256 == hashlib.sha256(b"{{ messages }}").hexdigest()
    assert (card.tokenizer, card.rope, card.quantisation) == ("gpt2", "base 10000", "F16")


def test_a_card_survives_being_written_and_read(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert decode(encode(card), Card) == card


def test_heads_given_layer_by_layer_are_summed(tmp_path: Path) -> None:
    card = card_of(tmp_path, {"llama.attention.head_count_kv": (ARRAY, (I32, [2, 0]))})
    assert card.kv_heads == 2
    assert card.kv_bytes_per_token(1) == 2 * (16 + 16)


def test_key_and_value_lengths_of_the_header_win(tmp_path: Path) -> None:
    lengths: dict[str, Value] = {"llama.attention.key_length": (U32, 192), "llama.attention.value_length": (U32, 128)}
    card = card_of(tmp_path, lengths)
    assert (card.head_dim, card.value_dim) == (192, 128)
    assert card.kv_bytes_per_token(1) == 2 * 2 * (192 + 128)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"llama.attention.kv_lora_rank": (U32, 512)}, "latent"),
        ({"llama.attention.sliding_window": (U32, 128)}, "sliding window"),
    ],
)
def test_unusual_attention_is_unknown_and_never_guessed(tmp_path: Path, changes: dict[str, Value], reason: str) -> None:
    card = card_of(tmp_path, changes)
    assert card.kv_bytes_per_token(2) is None
    assert reason in card.kv_unknown_because
    assert any(reason in text for _, text in describe(card))


def test_an_architecture_that_is_not_known_has_an_unknown_cache(tmp_path: Path) -> None:
    strange = {key.replace("llama.", "mamba9."): value for key, value in LLAMA.items()}
    path = tmp_path / "strange.gguf"
    path.write_bytes(gguf(strange | {"general.architecture": (STRING, "mamba9")}))
    card = read_card(path)
    assert card.layers == 2
    assert card.kv_values_per_token is None
    assert "mamba9" in card.kv_unknown_because


def test_a_file_without_a_chat_template_says_so(tmp_path: Path) -> None:
    assert card_of(tmp_path, without=("tokenizer.chat_template",)).chat_template_sha256 is None


@pytest.mark.parametrize("key", ["general.architecture", "llama.block_count", "llama.context_length"])
def test_a_header_without_the_essentials_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelRefused, match=key):
        card_of(tmp_path, without=(key,))


@pytest.mark.parametrize(
    "changes",
    [
        {"llama.block_count": (STRING, "2")},
        {"llama.block_count": (U32, 1 << 31)},
        {"llama.block_count": (U32, 100_000)},
        {"llama.block_count": (I32, -1)},
        {"general.architecture": (U32, 1)},
        {"llama.attention.head_count_kv": (ARRAY, (I32, [2, 2, 2]))},
        {"llama.attention.head_count_kv": (ARRAY, (STRING, ["2", "2"]))},
    ],
)
def test_numbers_of_the_wrong_kind_or_size_are_refused(tmp_path: Path, changes: dict[str, Value]) -> None:
    with pytest.raises(ModelRefused):
        card_of(tmp_path, changes)


def test_parts_of_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="one of 3 parts"):
        card_of(tmp_path, {"split.count": (U32, 3)})
    with pytest.raises(ModelRefused, match="adapter"):
        card_of(tmp_path, {"general.type": (STRING, "adapter")})


def test_names_from_a_file_cannot_command_the_terminal(tmp_path: Path) -> None:
    card = card_of(tmp_path, {"general.name": (STRING, "evil\x1b[2J\nname")})
    assert card.name.isprintable()
    assert all(text.isprintable() for _, text in describe(card))


# --- Hugging Face folders


def safetensors(header: object, data_bytes: int, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data_bytes)


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TWO = {"__metadata__": {"format": "pt"}, "a": tensor("BF16", [2, 4], 0, 16), "b": tensor("F32", [4], 16, 32)}


def folder(tmp_path: Path, config: JsonObject = QWEN3) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(safetensors(TWO, 32))
    return model


def test_the_card_of_a_folder_has_every_number(tmp_path: Path) -> None:
    model = folder(tmp_path)
    (model / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n")
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "chat_template": "T"})
    )
    card = read_card(model)
    assert (card.format, card.architecture, card.layers, card.kv_heads) == ("huggingface", "qwen3", 36, 8)
    assert card.weight_bytes == {"BF16": 16, "F32": 16}
    assert card.parameters == 12
    assert card.kv_bytes_per_token_f16 == 2 * 36 * 8 * 128 * 2
    assert card.chat_template_sha256 == hashlib.sha256(b"T").hexdigest()
    assert (card.licence, card.tokenizer, card.rope) == ("apache-2.0", "Qwen2Tokenizer", "base 1e+06")


def test_a_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    model = folder(tmp_path)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (model / "chat_template.jinja").write_text("new")
    assert card_of_folder(model).chat_template_sha256 == hashlib.sha256(b"new").hexdigest()


def test_of_several_templates_the_default_is_meant(tmp_path: Path) -> None:
    model = folder(tmp_path)
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert card_of_folder(model).chat_template_sha256 == hashlib.sha256(b"yes").hexdigest()


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    model = folder(tmp_path)
    (model / "model.safetensors").rename(model / "one.safetensors")
    (model / "two.safetensors").write_bytes(safetensors({"c": tensor("BF16", [8], 0, 16)}, 16))
    index = model / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}})
    )
    assert card_of_folder(model).total_weight_bytes == 48
    index.write_text(json.dumps({"weight_map": {"a": "two.safetensors"}}))
    with pytest.raises(ModelRefused, match="is not in two"):
        card_of_folder(model)


@pytest.mark.parametrize(
    "name", ["../up.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "..", ".h.safetensors", 7]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    model = folder(tmp_path)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelRefused, match="beside the index"):
        card_of_folder(model)


WRONG_HEADERS: dict[str, bytes] = {
    "empty": b"",
    "only a length": struct.pack("<Q", 8),
    "length beyond the file": safetensors(TWO, 32, length=1 << 40),
    "length of 64 bits": safetensors(TWO, 32, length=(1 << 64) - 1),
    "no object": safetensors(b"[1]", 0),
    "no JSON": safetensors(b"{nope", 0),
    "too deep": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0),
    "huge integer": safetensors(b'{"a":' + b"9" * 5_000 + b"}", 0),
    "twice": safetensors(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2 + b'"b":1}', 0),
    "hole": safetensors({"a": tensor("U8", [4], 4, 8)}, 8),
    "overlap": safetensors({"a": tensor("U8", [8], 0, 8), "b": tensor("U8", [8], 4, 12)}, 12),
    "trailing bytes": safetensors({"a": tensor("U8", [4], 0, 4)}, 8),
    "beyond the end": safetensors({"a": tensor("U8", [8], 0, 8)}, 4),
    "backwards": safetensors({"a": tensor("U8", [4], 4, 0)}, 4),
    "negative": safetensors({"a": tensor("U8", [-4], 0, 4)}, 4),
    "wrong size": safetensors({"a": tensor("F32", [4], 0, 4)}, 4),
    "half a byte": safetensors({"a": tensor("F4", [3], 0, 1)}, 1),
    "unknown dtype": safetensors({"a": tensor("Q4_1", [4], 0, 4)}, 4),
    "true is no size": safetensors({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 1),
    "overflowing shape": safetensors({"a": tensor("U8", [1 << 62, 1 << 62], 0, 0)}, 0),
    "unknown field": safetensors({"a": tensor("U8", [1], 0, 1) | {"strides": [1]}}, 1),
}


@pytest.mark.parametrize("data", WRONG_HEADERS.values(), ids=WRONG_HEADERS.keys())
def test_a_wrong_safetensors_header_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelRefused, match=r"wrong\.safetensors"):
        read_tensors(path)


def test_a_hole_between_tensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hole.safetensors"
    path.write_bytes(WRONG_HEADERS["hole"])
    with pytest.raises(ModelRefused, match="leaves a hole"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "several kinds"),
        ({"kv_lora_rank": 512}, "latent"),
        ({"model_type": "brand_new"}, "brand_new"),
    ],
)
def test_unusual_attention_of_a_folder_is_unknown_and_never_guessed(changes: JsonObject, reason: str) -> None:
    card = card_of_config(QWEN3 | changes, name="m")
    assert card.kv_bytes_per_token_f16 is None
    assert reason in card.kv_unknown_because


def test_packed_weights_do_not_pass_for_parameters() -> None:
    card = card_of_config(QWEN3 | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, name="m")
    assert card.parameters is None
    assert card.quantisation == "fp8 e4m3"


@pytest.mark.parametrize("value", [-1, 1.5, True, "36", 1 << 40, [36]])
def test_a_config_with_a_wrong_number_is_refused(value: object) -> None:
    with pytest.raises(ModelRefused, match="num_hidden_layers"):
        card_of_config(QWEN3 | {"num_hidden_layers": value}, name="m")


SAFETENSORS = safetensors(TWO, 32)


@given(st.lists(st.tuples(st.integers(0, len(SAFETENSORS) - 1), st.binary(min_size=1, max_size=9)), max_size=5))
def test_a_mutated_safetensors_header_parses_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(SAFETENSORS)
    for at, replacement in changes:
        data[at : at + len(replacement)] = replacement
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(ModelRefused):
        assert sum(tensor.size_bytes for tensor in read_tensors(path)) <= len(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(st.dictionaries(st.sampled_from([*QWEN3, "layer_types", "text_config", "rope_scaling", "dtype"]), json_values))
def test_any_config_gives_a_card_or_is_refused(changes: dict[str, object]) -> None:
    with contextlib.suppress(ModelRefused):
        encode(card_of_config(QWEN3 | changes, name="m"))


# --- published configurations

needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="no collection of published configurations here")
# From the papers and model pages: bytes per token in 16 bits.
PUBLISHED_KV_BYTES = {
    "meta-llama--Meta-Llama-3.1-8B": 131_072,
    "meta-llama--Meta-Llama-3.1-70B": 327_680,
    "meta-llama--Meta-Llama-3.1-405B": 516_096,
    "mistralai--Mixtral-8x7B-v0.1": 131_072,
    "Qwen--Qwen3-8B": 147_456,
    "Qwen--Qwen3-32B": 262_144,
    "Qwen--Qwen3-235B-A22B": 192_512,
}


def published() -> list[Path]:
    return sorted(path for path in CONFIGS.glob("*_config.json") if not path.name.endswith("hf_quant_config.json"))


@needs_configs
@pytest.mark.parametrize("path", published(), ids=lambda path: path.name.removesuffix("_config.json"))
def test_a_published_configuration_gives_sane_numbers_or_unknown(path: Path) -> None:
    config = read_json_object(path)
    card = card_of_config(config, name=path.name)
    text = json.dumps(config)
    if '"kv_lora_rank"' in text or "linear_attention" in text or "sliding_attention" in text or "mamba" in text:
        assert card.kv_values_per_token is None
    if card.kv_values_per_token is None:
        assert card.kv_unknown_because
        return
    assert card.layers
    assert 10_000 < (card.kv_bytes_per_token_f16 or 0) < 1_000_000
    assert card.kv_values_per_token % card.layers == 0
    assert (card.vocabulary or 0) > 10_000
    assert (card.context_tokens or 0) >= 8_192
    assert card.rope.startswith("base")


@needs_configs
@pytest.mark.parametrize("name", PUBLISHED_KV_BYTES)
def test_the_cache_per_token_is_the_published_one(name: str) -> None:
    card = card_of_config(read_json_object(CONFIGS / f"{name}_config.json"), name=name)
    assert card.kv_bytes_per_token_f16 == PUBLISHED_KV_BYTES[name]


@needs_configs
def test_most_published_configurations_with_plain_attention_are_known() -> None:
    known = [path.name for path in published() if card_of_config(read_json_object(path), name="m").kv_values_per_token]
    assert len(known) >= 25
