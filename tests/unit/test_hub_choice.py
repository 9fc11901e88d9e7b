"""Which files of a repository are the model, by their names as published repositories have them."""

from __future__ import annotations

import pytest

from modelyard.errors import ModelRefused, UsageError
from modelyard.models.download import Expected
from modelyard.models.hub_api import HubFile
from modelyard.models.hub_choice import choose_gguf, choose_small, choose_weights, wants_gguf
from modelyard.models.references import HubReference

QUANTS = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q6_K", "Q8_0", "IQ4_XS", "BF16", "F16"]


def files(*paths: str, size_bytes: int = 100) -> list[HubFile]:
    return [HubFile(path, Expected(size_bytes, sha256="0" * 64)) for path in paths]


def reference(choice: str = "") -> HubReference:
    return HubReference("org/name", "main", choice)


def chosen(choice: str, *paths: str) -> str:
    return choose_gguf(files(*paths), reference(choice)).path


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("form", ["Model-7B-{}.gguf", "model.{}.gguf", "model_7b-{}.gguf", "{}/Model-{}.gguf"])
def test_a_quantisation_is_found_whatever_the_naming(quant: str, form: str) -> None:
    paths = [form.format(one, one) for one in QUANTS]
    assert chosen(quant, *paths) == form.format(quant, quant)
    assert chosen(quant.lower(), *paths) == form.format(quant, quant)


def test_a_shorter_name_does_not_mean_a_longer_one() -> None:
    with pytest.raises(UsageError, match="has no Q4_K: it has IQ4_XS, Q4_K_M"):
        chosen("Q4_K", "m-Q4_K_M.gguf", "m-IQ4_XS.gguf")
    with pytest.raises(UsageError, match="has no 4_XS"):
        chosen("4_XS", "m-IQ4_XS.gguf", "m-Q4_K_M.gguf")


def test_without_a_choice_the_only_file_is_meant_or_else_the_usual_quantisation() -> None:
    assert chosen("", "anything.gguf") == "anything.gguf"
    assert chosen("", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf") == "m-Q4_K_M.gguf"
    with pytest.raises(UsageError, match="several quantisations, and which one is not said: F16, Q8_0") as caught:
        chosen("", "m-Q8_0.gguf", "m-F16.gguf")
    assert caught.value.hint.startswith("say which: hf://org/name:")


def test_projectors_importance_matrices_and_adapters_are_not_the_model() -> None:
    beside = ("mmproj-m-F16.gguf", "m.imatrix.gguf", "lora-m-F16.gguf")
    assert chosen("", "m-F16.gguf", *beside) == "m-F16.gguf"
    with pytest.raises(ModelRefused, match="neither safetensors nor GGUF"):
        choose_gguf(files(*beside), reference())


def test_two_files_of_one_quantisation_are_named_and_one_is_chosen_by_its_name() -> None:
    both = ("a-Q8_0.gguf", "sub/b-Q8_0.gguf")
    with pytest.raises(UsageError, match=r"several files, .*: a-Q8_0\.gguf, sub/b-Q8_0\.gguf"):
        chosen("Q8_0", *both)
    assert chosen("sub/b-Q8_0.gguf", *both) == "sub/b-Q8_0.gguf"


def test_a_model_in_parts_is_refused_before_it_is_fetched() -> None:
    parts = [f"m-Q8_0-{at:05d}-of-00003.gguf" for at in (1, 2, 3)]
    with pytest.raises(ModelRefused, match="split over 3 files") as caught:
        chosen("Q8_0", *parts, "m-Q4_0.gguf")
    assert "smaller quantisation" in caught.value.hint
    assert chosen("Q4_0", *parts, "m-Q4_0.gguf") == "m-Q4_0.gguf"


def test_safetensors_come_first_unless_a_quantisation_is_named() -> None:
    both = files("model.safetensors", "m-Q8_0.gguf", "config.json")
    assert not wants_gguf(both, reference())
    assert wants_gguf(both, reference("Q8_0"))
    assert wants_gguf(files("m-Q8_0.gguf"), reference())


def test_what_belongs_to_the_weights_is_configuration_tokenizer_and_licence() -> None:
    wanted = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "vocab.json"]
    wanted += ["chat_template.jinja", "README.md", "LICENSE", "special_tokens_map.json", "qwen.tiktoken"]
    unwanted = ["pytorch_model.bin", "modeling_x.py", "training_args.bin", "x.pth", "image.png", "sub/config.json"]
    unwanted += ["setup.sh", ".gitattributes", "model.onnx", "tf_model.h5", "a.gguf", "flax_model.msgpack"]
    assert [file.path for file in choose_small(files(*wanted, *unwanted))] == wanted
    assert choose_small(files("tokenizer.json", size_bytes=1 << 40)) == ()


def test_the_weights_are_what_the_index_names_or_the_usual_file_or_the_only_one() -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    here = files(*shards, "consolidated.safetensors", "sub/other.safetensors")
    assert [one.path for one in choose_weights(here, frozenset(shards), reference())] == list(shards)
    usual = files("model.safetensors", "consolidated.safetensors")
    assert [one.path for one in choose_weights(usual, None, reference())] == ["model.safetensors"]
    assert [one.path for one in choose_weights(files("x.safetensors"), None, reference())] == ["x.safetensors"]
    with pytest.raises(ModelRefused, match="2 safetensors files and no model"):
        choose_weights(files("x.safetensors", "y.safetensors"), None, reference())
    with pytest.raises(ModelRefused, match="is not whole"):
        choose_weights(here, frozenset(("elsewhere/../../x.safetensors",)), reference())
