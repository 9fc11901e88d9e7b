"""modelyard.yaml is refused with file, line and key, and a hint that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import SpecError
from modelyard.records.topology import Prices
from modelyard.spec.deployment import default_deployment, load, load_file
from modelyard.spec.policy import policy_of
from modelyard.spec.sizes import ByteSize, show

HEAD = "apiVersion: modelyard/v1\n"
ONE = HEAD + "name: a\nmodel: b\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "modelyard.yaml"


def refusal(file: Path, text: str | bytes) -> SpecError:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as caught:
        load(file)
    return caught.value


def test_three_lines_are_enough(file: Path) -> None:
    file.write_text(ONE)
    (deployment,) = load(file)
    assert (deployment.name, deployment.model, deployment.engine, deployment.replicas) == ("a", "b", "auto", 1)


def test_a_list_holds_several_deployments_behind_one_gateway(file: Path) -> None:
    file.write_text(HEAD + "gateway: {port: 9}\ndeployments:\n- {name: a, model: x}\n- {name: b, model: y}\n")
    whole = load_file(file)
    assert [one.name for one in whole.deployments] == ["a", "b"]
    assert whole.gateway.port == 9


@pytest.mark.parametrize(
    ("text", "line", "key", "says", "hint"),
    [
        ("", 1, "", "empty", "apiVersion"),
        ("just text", 1, "", "keys and values", "apiVersion"),
        ("name: a\n", 1, "apiVersion", "missing", "modelyard/v1"),
        ("apiVersion: modelyard/v9\n", 1, "apiVersion", "not known", "modelyard/v1"),
        (HEAD + "name: a\n", 1, "model", "missing", "add the key"),
        (HEAD + "name: a\nmodle: b\n", 3, "modle", "not a known key", "`model`"),
        (ONE + "limits:\n  max_inflight: 3\n", 5, "limits.max_inflight", "not a known key", "`max_in_flight`"),
        (ONE + "limits:\n  max_in_flight: many\n", 5, "limits.max_in_flight", "expected a whole number, got text", ""),
        (ONE + "limits:\n  kv_cache: much\n", 5, "limits.kv_cache", "no size", ""),
        (ONE + "limits:\n  queue_timeout_s: .nan\n", 5, "limits.queue_timeout_s", "> 0", ""),
        (ONE + "limits:\n  queue_timeout_s: .inf\n", 5, "limits.queue_timeout_s", "<= 86400", ""),
        (ONE + "prices: {currency: EUR, input: 0.1}\n", 4, "prices.output", "missing", "add the key"),
        (ONE + "prices:\n  currency: EUR\n  input: cheap\n  output: 1\n", 6, "prices.input", "no amount", ""),
        (ONE + "prices:\n  currency: EUR\n  input: -1\n  output: 1\n", 6, "prices.input", "at least 0", ""),
        (ONE + "prices:\n  currency: EUR\n  input: 0.0000001\n  output: 1\n", 6, "prices.input", "6 decimals", ""),
        (
            HEAD
            + "deployments:\n"
            + "".join(
                f"- name: {name}\n  model: b\n  prices:\n    currency: {currency}\n    input: 1\n    output: 1\n"
                for name, currency in (("a", "EUR"), ("b", "USD"))
            ),
            12,
            "deployments[1].prices.currency",
            "is USD, where deployments[0] has EUR",
            "one currency",
        ),
        (ONE + "limits:\n", 4, "limits", "got nothing", "leave the key out"),
        (ONE + "settings: {a: [1]}\n", 4, "settings", "got a list", ""),
        (HEAD + "name: no\nmodel: b\n", 2, "name", "got true or false", "quotes"),
        (HEAD + "name: My_Model\nmodel: b\n", 2, "name", "is not a name", "lower-case"),
        (HEAD + "name: ../a\nmodel: b\n", 2, "name", "is not a name", "lower-case"),
        (HEAD + "deployments: []\n", 2, "deployments", "length >= 1", ""),
        (HEAD + "deployments:\n- name: a\n  model: b\n  replicas: 0\n", 5, "deployments[0].replicas", ">= 1", ""),
        (HEAD + "deployments:\n- name: a\n  model: b\n  x: 0\n", 5, "deployments[0].x", "not a known key", "known"),
        (ONE + "gateway:\n  tls:\n    cert: a.pem\n", 5, "gateway.tls.key", "missing", "add the key"),
        (ONE + "fields:\n  forward: [Not-A-Field]\n", 5, "fields.forward[0]", "not a request field", "lower-case"),
        (ONE + "fields:\n  forward: [x, cache_salt]\n", 5, "fields.forward", "never passed on", "ours"),
        (
            HEAD + "deployments:\n- name: a\n  model: b\n  fields: {forward: [prompt_embeds]}\n",
            5,
            "deployments[0].fields.forward",
            "never passed on",
            "",
        ),
        (ONE + "isolation: full\n", 4, "isolation", "invalid", ""),
        (HEAD + "name: a\nname: b\n", 3, "name", "stands twice (first in line 2)", "one"),
        (HEAD + "name: &x a\nmodel: *x\n", 3, "", "aliases", "write the value out"),
        (ONE + "---\n" + ONE, 4, "", "more than one YAML document", "deployments"),
        (ONE + "settings: {<<: {a: 1}}\n", 4, "settings", "got keys and values", ""),
        (HEAD + "name: !!python/name:os.system x\n", 2, "", "not valid YAML", ""),
        (HEAD + "name: {\n", 3, "", "not valid YAML", "indentation"),
        (ONE + "? [x]\n: 1\n", 4, "?", "plain words", ""),
        (HEAD + "name: a\nmodel: 2026-99-99\n", 3, "model", "month", "quotes"),
        (HEAD + "settings: " + "[" * 5000, 2, "", "nested too deeply", ""),
        (b"\xff\xfe", 1, "", "not UTF-8", "UTF-8"),
        (b"a: \x00", 1, "", "not valid YAML", ""),
        (b"#" * ((1 << 20) + 1), 1, "", "larger than", ""),
    ],
)
def test_a_mistake_is_named_with_line_and_key(
    file: Path, text: str | bytes, line: int, key: str, says: str, hint: str
) -> None:
    error = refusal(file, text)
    assert error.where == f"{file}:{line}" + (f": {key}" if key else "")
    assert says in error.message
    assert hint in error.hint


def test_two_deployments_of_one_name_are_refused(file: Path) -> None:
    error = refusal(file, HEAD + "deployments:\n- {name: a, model: x}\n- name: a\n  model: y\n")
    assert error.where == f"{file}:4: deployments[1].name"
    assert "deployments[0]" in error.message


def test_a_missing_file_is_a_spec_error_too(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load(tmp_path / "absent.yaml")


def test_a_path_is_relative_to_the_file_and_a_name_stays_a_name(file: Path) -> None:
    file.write_text(
        HEAD + "deployments:\n- {name: a, model: ./m/x.gguf}\n- {name: b, model: x.GGUF}\n- {name: c, model: x}"
    )
    assert [one.model for one in load(file)] == [str(file.parent / "m/x.gguf"), str(file.parent / "x.GGUF"), "x"]


def test_tls_paths_are_relative_to_the_file(file: Path) -> None:
    file.write_text(ONE + "gateway: {tls: {cert: c.pem, key: /k.pem, client_ca: ca.pem}}\n")
    tls = load_file(file).gateway.tls
    assert tls is not None and (tls.cert, tls.key) == (str(file.parent / "c.pem"), "/k.pem")
    assert tls.client_ca == str(file.parent / "ca.pem")


def test_what_becomes_of_requests_is_read_from_the_file(file: Path) -> None:
    file.write_text(ONE + "isolation: shared\nfields: {forward: [a], strip: [b, c], refuse: [d]}\n")
    [deployment] = load(file)
    policy = policy_of(deployment)
    assert (policy.forwarded_fields, policy.stripped_fields, policy.refused_fields) == (("a",), ("b", "c"), ("d",))
    assert not policy.salted
    assert policy_of(default_deployment("x")).salted


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2", "smollm2"),
        ("/data/SmolLM2-135M.Q4_1.gguf", "smollm2-135m.q4-1"),
        ("./Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("/data/___.gguf", "model"),
    ],
)
def test_a_deployment_without_a_file_is_named_after_its_model(model: str, name: str) -> None:
    deployment = default_deployment(model)
    assert deployment.name == name
    assert deployment.model == model or Path(deployment.model).is_absolute()


@given(st.text(max_size=90))
def test_whatever_the_file_is_called_the_default_name_is_legal(stem: str) -> None:
    name = default_deployment(f"/data/{stem.replace('/', '')}.gguf").name
    assert 1 <= len(name) <= 63
    assert name.replace("-", "").replace(".", "").isalnum() and name.isascii() and name == name.lower()
    assert name[0] not in ".-" and name[-1] not in ".-" and ".." not in name


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_never_a_foreign_error(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("wb", suffix=".yaml") as file:
        file.write((HEAD + text).encode(errors="replace"))
        file.flush()
        try:
            load(Path(file.name))
        except SpecError as error:
            assert error.where.startswith(file.name)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 1 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("2k", 2000),
        ("7", 7),
        (7, 7),
        ("1Ki", 1024),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert ByteSize.parse(text) == size


@pytest.mark.parametrize("text", ["", "-1", "0", "1 GiB x", "1e9", True, 1.5, "1PiB", None, "9999999999TiB"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"size|byte"):
        ByteSize.parse(text)


@given(st.integers(min_value=1, max_value=1 << 42))
def test_a_shown_size_reads_back_within_rounding(size: int) -> None:
    assert abs(ByteSize.parse(show(size)) - size) <= max(1, size * 0.051)


def test_prices_are_exact_whether_written_as_numbers_or_as_text(file: Path) -> None:
    for input_price in ("0.15", '"0.15"', "15e-2"):
        file.write_text(ONE + f"prices: {{currency: EUR, input: {input_price}, output: 3, cached_input: 0.075}}\n")
        prices = policy_of(load(file)[0]).prices
        assert prices == Prices(currency="EUR", input_pico=150_000, cached_input_pico=75_000, output_pico=3_000_000)


def test_cached_tokens_cost_what_others_cost_unless_it_is_said(file: Path) -> None:
    file.write_text(ONE + "prices: {currency: EUR, input: 2, output: 3}\n")
    prices = policy_of(load(file)[0]).prices
    assert prices is not None and prices.cached_input_pico == 2_000_000
