"""The tokenizer of a GGUF file as tokenizer.json. Only pre-tokenizers that are known here: a wrong one splits numbers
and words otherwise than in training, and the model answers a little worse without anybody seeing why."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from dequantise_layout import Refused

tokenizers: Any = importlib.import_module("tokenizers")
pre: Any = importlib.import_module("tokenizers.pre_tokenizers")
processors: Any = importlib.import_module("tokenizers.processors")

# Kinds of tokens in tokenizer.ggml.token_type.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# The published tokenizer.json of Qwen2 and Llama 3: they differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> Any:
    words = pre.Split(tokenizers.Regex(_WORDS % digits), behavior="isolated")
    return pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def _bytes() -> Any:
    return pre.ByteLevel(add_prefix_space=False, use_regex=True)


# tokenizer.ggml.pre -> how text is cut before the merges.
_CUTS: dict[str, Callable[[], Any]] = {
    "gpt-2": _bytes,
    "smollm": lambda: pre.Sequence([pre.Digits(individual_digits=True), _bytes()]),
    "qwen2": lambda: _split(""),
    "llama-bpe": lambda: _split("{1,3}"),
}
_NORMALISED = frozenset({"qwen2"})
# A token of the vocabulary is taken whole, also where no merges lead to it.
_WHOLE_TOKENS = frozenset({"llama-bpe"})
_BEGINS_BY_DEFAULT = frozenset({"llama-bpe"})


def tokenizer_of(facts: Mapping[str, Any], context_tokens: int) -> tuple[Any, dict[str, Any]]:
    """The tokenizer, and its tokenizer_config.json. Raises Refused for a kind that is not known."""
    kind, cut = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in _CUTS:
        raise Refused(f"its tokenizer ({kind}, {cut}) is not one of {', '.join(sorted(_CUTS))} (all gpt2)")
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=cut in _WHOLE_TOKENS)
    tokenizer = tokenizers.Tokenizer(model)
    if cut in _NORMALISED:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = _CUTS[cut]()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    for added in _added(tokens, facts.get("tokenizer.ggml.token_type", ())):
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    special = _special(facts, tokens)
    begins = bool(facts.get("tokenizer.ggml.add_bos_token", cut in _BEGINS_BY_DEFAULT)) and "bos_token" in special
    tokenizer.post_processor = _processor(special["bos_token"], vocabulary) if begins else _offsets()
    config = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        "add_prefix_space": False,
    }
    return tokenizer, config


def _added(tokens: list[str], kinds: Any) -> list[Any]:
    """What is never cut, in the order of its numbers: both kinds keep those of the vocabulary."""
    return [
        tokenizers.AddedToken(token, special=kind in (_CONTROL, _UNKNOWN), normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _special(facts: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    numbers = {ours: facts.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in names.items()}
    return {name: tokens[number] for name, number in numbers.items() if number is not None and number < len(tokens)}


def _offsets() -> Any:
    return processors.ByteLevel(trim_offsets=False)


def _processor(bos: str, vocabulary: Mapping[str, int]) -> Any:
    begun = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, vocabulary[bos])]
    )
    return processors.Sequence([_offsets(), begun])
