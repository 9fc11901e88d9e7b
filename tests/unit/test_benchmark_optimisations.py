"""The pure parts of the optimisation benchmark: its cases, prompts, drafts, and the arithmetic of its table."""

from __future__ import annotations

import json
import math
import random
import struct
import sys
from pathlib import Path
from typing import get_args

import pytest
from gguf_files import LLAMA, U32, TensorSpec, gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import drafts
from benchmarks.optimisations_cases import (
    CASES,
    CONTEXT_TOKENS,
    WORK,
    Case,
    EngineName,
    NotOffered,
    Optimisation,
    Variant,
)
from benchmarks.optimisations_prompts import ONE_LONG_IN, Kind, prompts
from benchmarks.optimisations_table import METRICS, Half, Pair, not_offered, ratio, same_answers, table

from modelyard.engines.registry import engines
from modelyard.engines.sizing import Room, Sized
from modelyard.models.gguf import read_header
from modelyard.models.safetensors import read_tensors

ADAPTERS = {engine.name: engine for engine in engines()}
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
OPTIMISATIONS: tuple[Optimisation, ...] = get_args(Optimisation)


def test_every_engine_has_a_word_for_every_optimisation() -> None:
    assert CASES.keys() == set(ENGINES)
    assert all(cases.keys() == set(OPTIMISATIONS) for cases in CASES.values())
    assert WORK.keys() == set(OPTIMISATIONS)


@pytest.mark.parametrize("name", [name for name in ENGINES if name in ADAPTERS])
@pytest.mark.parametrize("optimisation", OPTIMISATIONS)
def test_an_operator_may_set_what_is_measured(name: EngineName, optimisation: Optimisation) -> None:
    case, adapter = CASES[name][optimisation], ADAPTERS[name]
    assert isinstance(adapter, Sized)
    if not isinstance(case, Case):
        assert case.source
        return
    settled = [adapter.settings(room(variant), variant.settings, {}) for variant in (case.on, case.off)]
    on, off = ({setting.name: setting.value for setting in settings} for settings in settled)
    assert on != off or case.on.draft


def room(variant: Variant) -> Room:
    because = {"max_sequences": "asked for", "kv_cache_bytes": "enough"}
    return Room(
        cores=2,
        context_tokens=CONTEXT_TOKENS,
        max_sequences=variant.max_in_flight,
        kv_cache_bytes=1 << 28,
        hang_timeout_s=20.0,
        because=because,
    )


def test_what_is_not_offered_says_where_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES["vllm"], "prefix cache", NotOffered("it has none", "its manual"))
    assert not_offered("prefix cache", "vllm") == "not offered: it has none (its manual)"
    assert not_offered("prefix cache", "openvino") is None


@pytest.mark.parametrize("kind", get_args(Kind))
def test_prompts_are_many_different_and_the_same_for_the_same_seed(kind: Kind) -> None:
    made = prompts(kind, random.Random(1), 8)
    assert len(set(made)) == 8
    assert made == prompts(kind, random.Random(1), 8)
    assert made != prompts(kind, random.Random(2), 8)


def test_prompts_share_a_beginning_only_where_they_should() -> None:
    shared = prompts("shared beginning", random.Random(1), 4)
    assert len({prompt[:2000] for prompt in shared}) == 1
    assert len({prompt[:60] for prompt in prompts("long", random.Random(1), 4)}) == 4


def test_mixed_prompts_have_one_long_one_among_short_ones() -> None:
    lengths = [len(prompt) > 1000 for prompt in prompts("mixed", random.Random(1), 8)]
    assert lengths == ([False] * (ONE_LONG_IN - 1) + [True]) * 2


def half(tokens_per_s: float, *answers: str) -> Half:
    return Half(tokens_per_s, 0.1, 0.02, 100 << 20, answers or ("a",))


def test_the_ratio_is_taken_within_each_pair() -> None:
    interval = ratio([Pair(half(20), half(10)), Pair(half(80), half(40)), Pair(half(2), half(1))], METRICS[0])
    assert [interval.low, interval.mean, interval.high] == pytest.approx([2, 2, 2])
    apart = ratio([Pair(half(math.e**0.1), half(1)), Pair(half(math.e**0.3), half(1))], METRICS[0])
    assert apart.mean == pytest.approx(math.e**0.2)
    assert apart.low == pytest.approx(math.exp(0.2 - 12.706 * 0.1))


def test_answers_are_compared_prompt_by_prompt() -> None:
    pairs = [Pair(half(1, "a", "b"), half(1, "a", "c")), Pair(half(1, "d", "e"), half(1, "d", "e"))]
    assert same_answers(pairs) == 0.75


def test_a_cell_shows_both_medians_and_the_ratio_and_others_say_why_not() -> None:
    pairs = [Pair(half(20), half(10)), Pair(half(22), half(11))]
    text = table({("prefix cache", "openvino"): pairs}, ["prefix cache"], ["openvino", "vllm"])
    lines = text.splitlines()
    assert "10.5 -> 21: x 2.00 (2.00-2.00)" in lines[1] and lines[1].endswith("100%")
    assert "[1]" in lines[2]
    assert lines[3] == "[1] prefix cache, vllm: not measured"


LAYERED = {**LLAMA, "llama.block_count": (U32, 6)}
TENSORS = (
    TensorSpec("token_embd.weight", (64, 3), 1, 384),
    *(TensorSpec(f"blk.{layer}.attn_norm.weight", (64,), 0, 256) for layer in range(6)),
)


def layered(folder: Path) -> Path:
    """Each tensor's bytes name it."""
    path = folder / "m.gguf"
    path.write_bytes(gguf(LAYERED, TENSORS))
    data = bytearray(path.read_bytes())
    for number, tensor in enumerate(read_header(path).tensors):
        data[tensor.offset : tensor.offset + tensor.size_bytes] = bytes([number]) * tensor.size_bytes
    path.write_bytes(data)
    return path


def test_a_draft_is_the_model_without_some_layers_and_nothing_else_changed(tmp_path: Path) -> None:
    source, target = layered(tmp_path), tmp_path / "draft.gguf"
    drafts.without_layers(source, target, range(2, 4))
    before, after = read_header(source), read_header(target)
    assert after.metadata["llama.block_count"] == 4
    assert {**after.metadata, "llama.block_count": 6} == before.metadata
    data = target.read_bytes()
    contents = {tensor.name: data[tensor.offset] for tensor in after.tensors}
    assert contents == {
        "token_embd.weight": 0,
        "blk.0.attn_norm.weight": 1,
        "blk.1.attn_norm.weight": 2,
        "blk.2.attn_norm.weight": 5,
        "blk.3.attn_norm.weight": 6,
    }


@pytest.mark.parametrize("dropped", [range(0, 2), range(4, 6), range(3, 3), range(1, 5, 2)])
def test_layers_are_cut_out_of_the_middle_in_one_piece(tmp_path: Path, dropped: range) -> None:
    with pytest.raises(ValueError, match="in the middle"):
        drafts.without_layers(layered(tmp_path), tmp_path / "draft.gguf", dropped)


def test_a_folder_loses_its_layers_in_weights_and_configuration(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    names = ["model.embed_tokens.weight", *(f"model.layers.{layer}.mlp.weight" for layer in range(4))]
    header = {
        name: {"dtype": "U8", "shape": [8], "data_offsets": [8 * place, 8 * place + 8]}
        for place, name in enumerate(names)
    }
    head = json.dumps(header).encode()
    content = b"".join(bytes([place]) * 8 for place in range(len(names)))
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + content)
    (source / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"]}))
    (source / "tokenizer.json").write_text("{}")
    target = drafts.made(source, tmp_path / "drafts")
    weights = target / "model.safetensors"
    data = weights.read_bytes()
    assert {tensor.name: data[tensor.offset] for tensor in read_tensors(weights)} == {
        "model.embed_tokens.weight": 0,
        "model.layers.0.mlp.weight": 1,
        "model.layers.1.mlp.weight": 2,
        "model.layers.2.mlp.weight": 4,
    }
    config = json.loads((target / "config.json").read_text())
    assert config == {"num_hidden_layers": 3, "layer_types": ["a", "b", "d"]}
    assert (target / "tokenizer.json").exists()
    assert drafts.made(source, tmp_path / "drafts") == target
