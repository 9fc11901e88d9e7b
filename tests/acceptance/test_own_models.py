"""What a first user brings along: served, or refused with a sentence that says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from commands import Command, Finished
from modelyard.engines.contract import Installed
from modelyard.models.catalogue import SMOLLM2
from modelyard.state import StateDirectory

pytestmark = pytest.mark.acceptance

REQUANTISE = Path(__file__).parents[1] / "requantise.py"


@pytest.fixture(scope="module")
def own_state(openvino: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("own") / "state"
    yield root
    Command(root)("down")
    if root.exists():
        shutil.rmtree(StateDirectory(root).sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def command(own_state: Path) -> Command:
    return Command(own_state)


@pytest.fixture(scope="module")
def requantised(
    openvino_python: str, smollm2_gguf: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """The packaged model as it is, and with its matrices in other types."""
    folder = tmp_path_factory.mktemp("models")
    made = {"Q4_1": folder / "mine-q4.gguf", "Q8_0": folder / "mine-q8.gguf", "F16": folder / "mine-f16.gguf"}
    shutil.copy(smollm2_gguf, made["Q4_1"])
    for kind in ("Q8_0", "F16"):
        subprocess.run([openvino_python, str(REQUANTISE), smollm2_gguf, str(made[kind]), kind], check=True)
    yield made
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_a_gguf_file_of_ones_own_is_served_and_knows_what_it_knew(
    command: Command, requantised: dict[str, Path], kind: str
) -> None:
    file = requantised[kind]
    serving = command("up", "-d", "--port", "0", "--json", str(file), check=True).lines[-1]
    try:
        key = command("keys", "create", kind.lower(), "--json", check=True).value["key"]
        with openai.OpenAI(base_url=serving["url"], api_key=key, max_retries=0, timeout=120) as client:
            right = [probe for probe in SMOLLM2.probes if probe.expected in answer(client, file.stem, probe)]
    finally:
        command("down", check=True)
    # The margins of the probes are the Q4_1 file's: the others are other models, if only by a little.
    assert len(right) >= len(SMOLLM2.probes) - (0 if kind == "Q4_1" else 1)


def answer(client: openai.OpenAI, model: str, probe: Any) -> str:
    if probe.kind == "chat":
        messages: Any = [{"role": "user", "content": probe.prompt}]
        said = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
        return said.choices[0].message.content or ""
    return client.completions.create(model=model, prompt=probe.prompt, max_tokens=8, temperature=0).choices[0].text


def refused(command: Command, *arguments: str) -> Finished:
    ended = command("up", "-d", "--port", "0", *arguments)
    assert ended.code in (4, 5), ended
    assert command("status").code == 9, "what cannot be served starts nothing"
    return ended


def test_a_file_that_was_cut_short_is_refused_with_the_missing_bytes(
    command: Command, smollm2_gguf: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(smollm2_gguf).read_bytes()[:50_000_000])
    ended = refused(command, str(broken))
    assert ended.code == 4
    assert "broken.gguf" in ended.err and "50000000 bytes" in ended.err.replace(",", "")
    assert "fetch it again from a source that you trust" in ended.err


def test_a_file_that_is_no_gguf_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>404 Not Found</html>")
    ended = refused(command, str(tmp_path / "page.gguf"))
    assert "it does not begin with GGUF" in ended.err


def test_a_pickle_is_refused_because_it_runs_code(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": [0.0]}))
    ended = refused(command, str(folder))
    assert ended.code == 4
    assert "pytorch_model.bin is refused: it may be a pickle, which runs code when it is loaded" in ended.err
    assert "try:   use the safetensors or GGUF form of this model" in ended.err


def test_a_model_too_large_for_the_machine_is_refused_with_both_numbers(
    command: Command, requantised: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text(
        "apiVersion: modelyard/v1\nname: large\nengine: openvino\n"
        f"model: {requantised['F16']}\nlimits: {{memory: 600MiB}}\n"
    )
    ended = refused(command, str(file))
    assert ended.code == 5
    assert "the model takes up to 1.7 GiB and its KV cache" in ended.err
    assert "together more than 600 MiB (limits.memory)" in ended.err
    assert "try:   use a smaller or more strongly quantised model, or a machine with more memory" in ended.err
