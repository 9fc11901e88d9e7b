"""What a GGUF file's tensors and numbers are called in a Hugging Face folder: names and JSON, no arithmetic.

Names on the GGUF side: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; on the other the
model classes of transformers, whose names every engine reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class Refused(Exception):
    """This model is not converted; the message says why."""


class Weight(NamedTuple):
    """`shape` is slowest dimension first. `paired_heads` is how many heads have their rotary dimensions interleaved,
    0 where none has."""

    source: str
    target: str
    shape: tuple[int, ...]
    paired_heads: int


class Layout(NamedTuple):
    weights: tuple[Weight, ...]
    config: dict[str, Any]
    generation: dict[str, Any]
    chat_template: str
    licence: str
    context_tokens: int


def layout_of(facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """`facts` is the file's metadata, `shapes` its tensors, fastest dimension first. Raises Refused."""
    architecture = facts.get("general.architecture")
    if architecture not in _CLASSES:
        raise Refused(f"architecture {architecture!r} is not one of {', '.join(sorted(_CLASSES))}")
    config = _config(architecture, facts, shapes)
    weights = tuple(
        Weight(name, target, tuple(reversed(shapes[name])), _paired_heads(name, config))
        for name, target in _targets(architecture, config["num_hidden_layers"], shapes).items()
    )
    return Layout(
        weights,
        config,
        _generation(facts),
        facts.get("tokenizer.chat_template", ""),
        _plain(facts.get("general.license", "")),
        config["max_position_embeddings"],
    )


def _config(architecture: str, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    def number(key: str, *default: Any) -> Any:
        value = facts.get(f"{architecture}.{key}", *default)
        if value is None:
            raise Refused(f"{architecture}.{key} is missing")
        return value

    heads, hidden = number("attention.head_count"), number("embedding_length")
    key_length = number("attention.key_length", hidden // heads)
    _check_plain_attention(architecture, facts, shapes, key_length)
    theta = float(number("rope.freq_base", 10_000.0))
    if "token_embd.weight" not in shapes:
        raise Refused("token_embd.weight is missing")
    biased = "blk.0.attn_q.bias" in shapes
    config: dict[str, Any] = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": key_length,
        "hidden_act": "silu",
        "max_position_embeddings": number("context_length"),
        # Stored in F32: what was 1e-05 would come out as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": shapes["token_embd.weight"][-1],
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": biased,
        "mlp_bias": False,
        "use_sliding_window": False,
        "dtype": "bfloat16",
    }
    if architecture == "qwen2":
        del config["attention_bias"]  # its class always has one
    return config | _special_ids(facts)


def _check_plain_attention(
    architecture: str, facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], key_length: int
) -> None:
    if "rope_freqs.weight" in shapes or facts.get(f"{architecture}.rope.scaling.type", "none") != "none":
        raise Refused("its rotary embedding is scaled, which this conversion does not carry over")
    if facts.get(f"{architecture}.rope.dimension_count", key_length) != key_length:
        raise Refused("only a part of each head is rotated, which this conversion does not carry over")
    if facts.get(f"{architecture}.attention.value_length", key_length) != key_length:
        raise Refused("keys and values differ in length, which this conversion does not carry over")
    if facts.get(f"{architecture}.expert_count", 0):
        raise Refused("it is a mixture of experts, which this conversion does not carry over")
    for key in ("attention.head_count", "attention.head_count_kv"):
        if isinstance(facts.get(f"{architecture}.{key}"), list):
            raise Refused("its layers have different numbers of heads, which this conversion does not carry over")


def _targets(architecture: str, layers: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Every tensor with its new name, in the file's order; each that the model's class needs must be there."""
    parts = _PER_LAYER | (_NORMS_OF_HEADS if architecture == "qwen3" else {})
    found: dict[str, str] = {}
    for name in shapes:
        stem, _, kind = name.rpartition(".")
        layer = _LAYER.fullmatch(name)
        if layer is not None and layer[2] in parts and int(layer[1]) < layers:
            found[name] = f"model.layers.{layer[1]}.{parts[layer[2]]}.{layer[3]}"
        elif stem in _WHOLE and kind == "weight":
            found[name] = f"{_WHOLE[stem]}.weight"
        else:
            raise Refused(f"tensor {name[:80]} has no place in a {_CLASSES[architecture]}")
    needed = {"token_embd.weight", "output_norm.weight"}
    needed |= {f"blk.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    if missing := sorted(needed - found.keys()):
        raise Refused(f"tensor {missing[0]} is missing")
    return found


def _paired_heads(name: str, config: Mapping[str, Any]) -> int:
    if config["model_type"] != "llama":
        return 0
    part = name.split(".")[-2]
    return {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(part, 0)


def _special_ids(facts: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    ids = {ours: facts.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in names.items()}
    return {name: int(number) for name, number in ids.items() if number is not None}


def _generation(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Every token that ends an answer, the end of a turn too."""
    ends = [facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(int(number) for number in ends if number is not None))
    return _special_ids(facts) | ({"eos_token_id": unique if len(unique) > 1 else unique[0]} if unique else {})


def _plain(text: object) -> str:
    return text if isinstance(text, str) and re.fullmatch(r"[\w.+-]+", text) else ""
