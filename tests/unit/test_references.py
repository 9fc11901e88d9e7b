"""References to models elsewhere: read strictly, written back as they were meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import UsageError
from modelyard.models.references import (
    HubReference,
    ObjectReference,
    OllamaReference,
    parse_hub,
    parse_object,
    parse_ollama,
    scheme_of,
)
from modelyard.models.web import Patience, needs_no_proxy
from modelyard.spec.deployment import default_deployment, is_path

HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf://Qwen/Qwen3-0.6B", HubReference("Qwen/Qwen3-0.6B")),
        ("hf://Qwen/Qwen3-0.6B-GGUF:Q8_0", HubReference("Qwen/Qwen3-0.6B-GGUF", "main", "Q8_0")),
        ("hf://a/b@v1.0:UD-Q4_K_XL", HubReference("a/b", "v1.0", "UD-Q4_K_XL")),
        ("hf://a/b@refs/pr/1", HubReference("a/b", "refs/pr/1")),
        ("hf://a/b:sub/my model-Q8_0.gguf", HubReference("a/b", "main", "sub/my model-Q8_0.gguf")),
    ],
)
def test_a_hub_reference_is_read(text: str, meant: HubReference) -> None:
    assert parse_hub(text) == meant
    assert parse_hub(str(meant)) == meant


NO_REFERENCES = "| a|a/b/c|a/b@|a/b:|a/b@../x|../b|a/..|a--b/c|a/b:../x.gguf|a/b:/x.gguf|a/b@x:y:z|a/b c|a/b\n|á/b|a/-b"


@pytest.mark.parametrize("text", NO_REFERENCES.split("|"))
def test_what_is_no_hub_reference_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_hub(f"hf://{text}")
    assert "hf://org/name" in caught.value.hint


@given(st.text(max_size=60))
def test_whatever_is_accepted_stays_within_its_place(text: str) -> None:
    """Parts of an accepted reference become parts of URLs and of paths in caches."""
    try:
        found = parse_hub(f"hf://{text}")
    except UsageError:
        return
    assert found.repository.count("/") == 1
    for part in (*found.repository.split("/"), *found.revision.split("/"), *found.choice.split("/")):
        assert part not in (".", "..") and "\\" not in part and (part.isprintable() or not part)
    assert not found.revision.startswith("/") and not found.choice.startswith("/")
    assert parse_hub(str(found)) == found


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("ollama://llama3.2", OllamaReference("llama3.2")),
        ("ollama://qwen3:0.6b", OllamaReference("qwen3", "0.6b")),
        ("ollama://me/mine:v1", OllamaReference("mine", "v1", "me")),
    ],
)
def test_an_ollama_reference_is_read_as_ollama_lists_it(text: str, meant: OllamaReference) -> None:
    assert parse_ollama(text) == meant
    assert parse_ollama(str(meant)) == meant


@pytest.mark.parametrize("text", ["ollama://", "ollama://a:", "ollama://../a", "ollama://a/b/c", "ollama://a:../b"])
def test_what_ollama_could_not_hold_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no model of an Ollama store"):
        parse_ollama(text)


def test_a_url_is_shown_and_recorded_without_its_signature() -> None:
    found = parse_object(f"https://host:8080/dir/x.gguf?X-Signature=secret&sha256={HASH.upper()}#frag")
    assert found == ObjectReference("https://host:8080/dir/x.gguf?X-Signature=secret", HASH)
    assert str(found) == f"https://host:8080/dir/x.gguf?sha256={HASH}"
    assert found.file_name == "x.gguf"
    assert str(parse_object("s3://bucket/a/b.gguf")) == "s3://bucket/a/b.gguf"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://host/model.safetensors", "only single .gguf files"),
        ("s3://bucket/folder/", "only single .gguf files"),
        ("https://user:pass@host/x.gguf", "holds a password"),
        ("https://host/x.gguf?sha256=abc", "sha256 is no hash"),
        (f"https://host/x.gguf?sha256={HASH}&sha256={HASH}", "sha256 is no hash"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_object(text)
    assert "pass@" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "scheme"), [("hf://a/b", "hf"), ("HF://a/b", "hf"), ("./a://b", ""), ("smollm2", ""), ("C:\\x", "")]
)
def test_the_scheme_of_a_reference(text: str, scheme: str) -> None:
    assert scheme_of(text) == scheme


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B-GGUF@main:Q8_0", "qwen3-0.6b-gguf"),
        ("hf://Qwen/Qwen3-0.6B-GGUF@refs/pr/1:Q8_0", "qwen3-0.6b-gguf"),
        ("ollama://llama3.2:1b", "llama3.2"),
        ("ollama://me/mine:v1", "mine"),
        ("https://host:8080/dir/My_Model.Q4.gguf?sha256=0", "my-model.q4"),
        ("s3://bucket/x.gguf", "x"),
        ("store://tiny-0123456789ab", "tiny-0123456789ab"),
    ],
)
def test_a_deployment_is_named_after_the_model_and_not_after_its_place(model: str, name: str) -> None:
    assert not is_path(model)
    assert (default_deployment(model).name, default_deployment(model).model) == (name, model)


@pytest.mark.parametrize(
    ("host", "listed", "none"),
    [
        ("hub.example.org", "example.org", True),
        ("hub.example.org", ".example.org,localhost", True),
        ("example.org", " Example.ORG ", True),
        ("notexample.org", "example.org", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("anything", "*", True),
        ("anything", "", False),
    ],
)
def test_which_hosts_need_no_proxy(host: str, listed: str, none: bool) -> None:
    assert needs_no_proxy(host, listed) is none


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_are_spread_and_stay_bounded(failures: int, jitter: float) -> None:
    patience = Patience()
    pause = patience.pause_s(failures, jitter, None)
    assert patience.first_pause_s / 2 <= pause <= patience.longest_pause_s
    assert pause <= patience.pause_s(failures + 1, jitter, None)
    assert patience.pause_s(failures, jitter, 7.0) == 7.0, "what the server asks for is what it gets"
