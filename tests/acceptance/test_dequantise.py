"""The de-quantising program in the environment that it runs in: what was written as GGUF comes back as it was."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelyard.engines.contract import Installed
from modelyard.models.reader import read_card
from programs import PROGRAMS

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

# Run inside the environment: writes a tiny model as llama.cpp's converter would, and says how far the result is off.
WRITE = """
import json, sys
import numpy as np, gguf
architecture, kind, path = sys.argv[1:]
heads, kv_heads, hidden, inner, words = 4, 2, 64, 128, 40
draw = np.random.default_rng(7)
kinds = gguf.GGMLQuantizationType
writer = gguf.GGUFWriter(path, architecture)
for name, number in {"block_count": 2, "context_length": 128, "embedding_length": hidden, "feed_forward_length": inner,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads}.items():
    writer.add_uint32(f"{architecture}.{name}", number)
writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
letters = [chr(256 + number) if number < 33 else chr(number) for number in range(words - 4)]
tokens = letters + ['!"', "<|im_start|>", "<|im_end|>", "<tool>"]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("qwen2" if architecture != "llama" else "smollm")
writer.add_token_list(tokens)
writer.add_token_types([1] * (words - 3) + [3, 3, 4])
writer.add_token_merges(["! \\""])
writer.add_eos_token_id(words - 2)
writer.add_chat_template("{{ messages }}")

def add(name, values, paired=0):
    if paired:
        rows = values.shape[0]
        values = values.reshape(paired, 2, rows // paired // 2, -1).swapaxes(1, 2).reshape(values.shape)
    if kind == "Q8_0" and values.ndim == 2:
        writer.add_tensor(name, gguf.quantize(values, kinds.Q8_0), raw_dtype=kinds.Q8_0)
    elif kind == "BF16" and values.ndim == 2:
        writer.add_tensor(name, gguf.quantize(values, kinds.BF16), raw_dtype=kinds.BF16)
    else:
        writer.add_tensor(name, values.astype(np.float16 if values.ndim == 2 else np.float32))

def matrix(rows, columns):
    return draw.standard_normal((rows, columns), dtype=np.float32)

wanted = {}
def both(theirs, ours, values, paired=0):
    wanted[ours] = values
    add(theirs, values, paired if architecture == "llama" else 0)

both("token_embd.weight", "model.embed_tokens.weight", matrix(words, hidden))
both("output_norm.weight", "model.norm.weight", draw.standard_normal(hidden, dtype=np.float32))
width = hidden // heads
for layer in range(2):
    b, m = f"blk.{layer}", f"model.layers.{layer}"
    both(f"{b}.attn_norm.weight", f"{m}.input_layernorm.weight", draw.standard_normal(hidden, dtype=np.float32))
    both(f"{b}.ffn_norm.weight", f"{m}.post_attention_layernorm.weight", draw.standard_normal(hidden, dtype=np.float32))
    both(f"{b}.attn_q.weight", f"{m}.self_attn.q_proj.weight", matrix(hidden, hidden), heads)
    both(f"{b}.attn_k.weight", f"{m}.self_attn.k_proj.weight", matrix(kv_heads * width, hidden), kv_heads)
    both(f"{b}.attn_v.weight", f"{m}.self_attn.v_proj.weight", matrix(kv_heads * width, hidden))
    both(f"{b}.attn_output.weight", f"{m}.self_attn.o_proj.weight", matrix(hidden, hidden))
    both(f"{b}.ffn_gate.weight", f"{m}.mlp.gate_proj.weight", matrix(inner, hidden))
    both(f"{b}.ffn_up.weight", f"{m}.mlp.up_proj.weight", matrix(inner, hidden))
    both(f"{b}.ffn_down.weight", f"{m}.mlp.down_proj.weight", matrix(hidden, inner))
    if architecture == "qwen2":
        for part, rows in {"q": hidden, "k": kv_heads * width, "v": kv_heads * width}.items():
            name = f"{m}.self_attn.{part}_proj.bias"
            both(f"{b}.attn_{part}.bias", name, draw.standard_normal(rows, dtype=np.float32))
    if architecture == "qwen3":
        for part in "qk":
            name = f"{m}.self_attn.{part}_norm.weight"
            both(f"{b}.attn_{part}_norm.weight", name, draw.standard_normal(width, dtype=np.float32))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
np.savez(path + ".npz", **wanted)
"""
COMPARE = """
import json, sys
import numpy as np
from tokenizers import Tokenizer
folder, wanted = sys.argv[1], np.load(sys.argv[2])
data = open(f"{folder}/model.safetensors", "rb").read()
begin = 8 + int.from_bytes(data[:8], "little")
header = json.loads(data[8:begin])
header.pop("__metadata__")
assert header.keys() == set(wanted.files), (sorted(header), sorted(wanted.files))
off = 0.0
for name, told in header.items():
    bits = np.frombuffer(data, "<u2", offset=begin + told["data_offsets"][0], count=wanted[name].size)
    found = (bits.astype("<u4") << 16).view("<f4").reshape(told["shape"])
    off = max(off, float(np.abs(found - wanted[name]).max()))
ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode("<|im_start|>!#<tool>").ids
print(json.dumps({"off": off, "dtypes": sorted({told["dtype"] for told in header.values()}), "ids": ids}))
"""


def run(python: str, *arguments: str) -> str:
    ended = subprocess.run([python, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "BF16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_every_number_comes_back_as_near_as_its_type_allows(
    vllm: Installed, tmp_path: Path, architecture: str, kind: str
) -> None:
    source, folder = tmp_path / "m.gguf", tmp_path / "m-bf16"
    folder.mkdir()
    run(vllm.python, "-c", WRITE, architecture, kind, str(source))
    lines = run(vllm.python, str(PROGRAMS / "dequantise_gguf.py"), str(source), str(folder)).splitlines()
    last = json.loads(lines[-1].removeprefix("progress "))
    assert last["done"] == last["total"]
    told: dict[str, Any] = json.loads(run(vllm.python, "-c", COMPARE, str(folder), f"{source}.npz"))
    # Eight bits of a number around 4, and 1/127 of the largest of 32 numbers.
    assert told["off"] < 0.05
    assert told["dtypes"] == ["BF16"]
    assert (told["ids"][0], told["ids"][-1]) == (37, 39), "special tokens are never cut"
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    card = read_card(folder)
    assert (card.architecture, card.layers, card.quantisation) == (architecture, 2, "BF16")


def test_what_it_does_not_know_is_refused_in_one_line(vllm: Installed, tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    run(vllm.python, "-c", WRITE.replace('"smollm"', '"some-new-one"'), "llama", "F16", str(source))
    (tmp_path / "out").mkdir()
    program = str(PROGRAMS / "dequantise_gguf.py")
    ended = subprocess.run([vllm.python, program, str(source), str(tmp_path / "out")], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout.startswith("error: its tokenizer (gpt2, some-new-one) is not one of gpt-2, llama-bpe")
