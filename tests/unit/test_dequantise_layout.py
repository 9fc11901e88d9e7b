"""What a GGUF file becomes in a Hugging Face folder, as far as names and numbers go; what is not known is refused."""

from __future__ import annotations

from typing import Any

import pytest

from programs import load_program

LAYOUT = load_program("dequantise_layout")


def facts(architecture: str = "llama", **changes: object) -> dict[str, Any]:
    numbers: dict[str, object] = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
        "rope.freq_base": 10000.0,
    }
    made: dict[str, Any] = {f"{architecture}.{name}": number for name, number in numbers.items()}
    made |= {
        "general.architecture": architecture,
        "general.license": "apache-2.0",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def shapes(architecture: str = "llama", *, tied: bool = True) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, 300), "output_norm.weight": (64,)}
    if not tied:
        made["output.weight"] = (64, 300)
    for layer in range(2):
        for name, shape in {
            "attn_norm.weight": (64,),
            "attn_q.weight": (64, 64),
            "attn_k.weight": (64, 32),
            "attn_v.weight": (64, 32),
            "attn_output.weight": (64, 64),
            "ffn_norm.weight": (64,),
            "ffn_gate.weight": (64, 128),
            "ffn_up.weight": (64, 128),
            "ffn_down.weight": (128, 64),
        }.items():
            made[f"blk.{layer}.{name}"] = shape
        if architecture == "qwen2":
            made |= {f"blk.{layer}.attn_q.bias": (64,), f"blk.{layer}.attn_k.bias": (32,)}
        if architecture == "qwen3":
            made |= {f"blk.{layer}.attn_{part}_norm.weight": (16,) for part in "qk"}
    return made


def test_every_tensor_gets_the_name_and_the_shape_that_model_classes_expect() -> None:
    weights = {weight.target: weight for weight in LAYOUT.layout_of(facts(), shapes()).weights}
    assert len(weights) == len(shapes())
    assert weights["model.embed_tokens.weight"].shape == (300, 64)
    assert weights["model.layers.1.mlp.down_proj.weight"].source == "blk.1.ffn_down.weight"
    assert weights["model.layers.0.self_attn.k_proj.weight"].shape == (32, 64)
    assert weights["model.norm.weight"].shape == (64,)


@pytest.mark.parametrize(("architecture", "paired"), [("llama", (4, 2)), ("qwen2", (0, 0)), ("qwen3", (0, 0))])
def test_only_llamas_heads_have_their_rotary_dimensions_interleaved(architecture: str, paired: tuple[int, int]) -> None:
    weights = {weight.source: weight for weight in LAYOUT.layout_of(facts(architecture), shapes(architecture)).weights}
    found = tuple(weights[f"blk.0.attn_{part}.weight"].paired_heads for part in "qk")
    assert found == paired
    assert weights["blk.0.attn_v.weight"].paired_heads == 0


def test_the_configuration_has_the_files_own_numbers() -> None:
    config = LAYOUT.layout_of(facts(), shapes()).config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 16)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (300, 512)
    assert config["rms_norm_eps"] == 1e-05
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_matrix_of_its_own_is_kept_and_a_shared_one_is_said(tied: bool) -> None:
    layout = LAYOUT.layout_of(facts(), shapes(tied=tied))
    assert layout.config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in {weight.target for weight in layout.weights}) is not tied


def test_template_licence_and_every_end_of_an_answer_come_along() -> None:
    layout = LAYOUT.layout_of(facts(**{"tokenizer.ggml.eot_token_id": 5}), shapes())
    assert (layout.chat_template, layout.licence) == ("{{ messages }}", "apache-2.0")
    assert layout.generation == {"bos_token_id": 1, "eos_token_id": [2, 5]}


def test_a_licence_that_is_no_word_does_not_get_into_a_file() -> None:
    assert LAYOUT.layout_of(facts(**{"general.license": "x\n---\nevil"}), shapes()).licence == ""


def without(name: str) -> dict[str, tuple[int, ...]]:
    return {other: shape for other, shape in shapes().items() if other != name}


@pytest.mark.parametrize(
    ("given", "tensors", "why"),
    [
        (facts("gemma3"), shapes(), "architecture 'gemma3' is not one of llama, qwen2, qwen3"),
        (facts(**{"llama.embedding_length": None}), shapes(), "llama.embedding_length is missing"),
        (facts(), shapes() | {"rope_freqs.weight": (8,)}, "rotary embedding is scaled"),
        (facts(**{"llama.rope.scaling.type": "yarn"}), shapes(), "rotary embedding is scaled"),
        (facts(**{"llama.rope.dimension_count": 8}), shapes(), "only a part of each head is rotated"),
        (facts(**{"llama.attention.value_length": 8}), shapes(), "keys and values differ"),
        (facts(**{"llama.expert_count": 8}), shapes(), "mixture of experts"),
        (facts(**{"llama.attention.head_count_kv": [2, 1]}), shapes(), "different numbers of heads"),
        (facts(), shapes() | {"blk.0.ffn_gate_inp.weight": (64, 8)}, "blk.0.ffn_gate_inp.weight has no place"),
        (facts(), shapes() | {"blk.2.ffn_up.weight": (64, 128)}, "blk.2.ffn_up.weight has no place"),
        (facts(), without("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight is missing"),
        (facts(), without("token_embd.weight"), "token_embd.weight is missing"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_the_reason(
    given: dict[str, Any], tensors: dict[str, tuple[int, ...]], why: str
) -> None:
    with pytest.raises(LAYOUT.Refused, match=why):
        LAYOUT.layout_of(given, tensors)
