"""Turns a GGUF file into a folder of BF16 safetensors with its tokenizer, chat template and configuration.

    dequantise_gguf.py SOURCE.gguf FOLDER

Run by path inside an environment that has numpy, gguf and tokenizers. Tensor by tensor and in pieces: memory stays at a
few hundred megabytes whatever the model's size, and no model class is loaded. What this program does not know to be
right is refused, never guessed: exit code 2 and `error: cause`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from dequantise_layout import Layout, Refused, Weight, layout_of
from dequantise_tokenizer import tokenizer_of

np: Any = importlib.import_module("numpy")
gguf: Any = importlib.import_module("gguf")

_PIECE_VALUES = 16 << 20
_BF16_BYTES = 2


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("error: usage: dequantise_gguf.py SOURCE.gguf FOLDER", flush=True)
        return 2
    source, folder = arguments
    try:
        _convert(gguf.GGUFReader(source), folder)
    except Refused as refused:
        print(f"error: {refused}", flush=True)
        return 2
    except OSError as error:
        print(f"error: {error.filename or folder}: {error.strerror or error}", flush=True)
        return 1
    return 0


def _convert(reader: Any, folder: str) -> None:
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    layout = layout_of(facts, {name: tuple(int(size) for size in tensor.shape) for name, tensor in tensors.items()})
    # The small files first: a tokenizer that is not known is said before gigabytes are written.
    tokenizer, tokenizer_config = tokenizer_of(facts, layout.context_tokens)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    _write_json(folder, "tokenizer_config.json", tokenizer_config)
    _write_json(folder, "config.json", layout.config)
    _write_json(folder, "generation_config.json", layout.generation)
    if layout.chat_template:
        with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as file:
            file.write(layout.chat_template)
    if layout.licence:
        with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
            file.write(f"---\nlicense: {layout.licence}\n---\nDe-quantised to BF16 from a GGUF file.\n")
    _write_weights(os.path.join(folder, "model.safetensors"), layout, tensors)


def _write_json(folder: str, name: str, value: object) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)


def _write_weights(path: str, layout: Layout, tensors: dict[str, Any]) -> None:
    """The safetensors format: https://github.com/huggingface/safetensors#format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in layout.weights:
        begin, end = end, end + _BF16_BYTES * int(np.prod(weight.shape))
        header[weight.target] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        done = 0
        for weight in layout.weights:
            for piece in _pieces(weight, tensors[weight.source]):
                done += file.write(piece)
                _say("de-quantise", done, end)
        file.flush()
        os.fsync(file.fileno())


def _pieces(weight: Weight, tensor: Any) -> Iterator[bytes]:
    """The tensor's values as BF16, a few million at a time. Rows are quantised one by one, so they can be taken in any
    order before they are unpacked."""
    is_matrix, width = len(weight.shape) > 1, weight.shape[-1]
    rows = tensor.data.reshape(-1, tensor.data.shape[-1]) if is_matrix else tensor.data.reshape(1, -1)
    order = np.arange(len(rows))
    if weight.paired_heads and is_matrix:
        order = _halves(len(rows), weight.paired_heads)
    step = max(1, _PIECE_VALUES // width)
    for begin in range(0, len(rows), step):
        values = _unpacked(weight.source, rows[order[begin : begin + step]], tensor.tensor_type)
        if weight.paired_heads and not is_matrix:
            values = values[:, _halves(width, weight.paired_heads)]
        if not np.isfinite(values).all():
            raise Refused(f"tensor {weight.source} holds values that are no numbers")
        yield _bfloat16(values).tobytes()


def _unpacked(name: str, rows: Any, kind: Any) -> Any:
    try:
        return gguf.dequantize(np.ascontiguousarray(rows), kind)
    except NotImplementedError:
        raise Refused(f"tensor {name} is {kind.name}, which the gguf package does not unpack") from None


def _halves(rows: int, heads: int) -> Any:
    """GGUF's llama rotates neighbours, (0, 1), (2, 3), ..., where Hugging Face's rotates halves, (0, d/2), ...: for
    every row of the latter its row in the former. Undoes `permute` of llama.cpp's convert_hf_to_gguf.py."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _bfloat16(values: Any) -> Any:
    """The upper halves of float32, rounded to nearest, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")


def _say(stage: str, done: int, total: int) -> None:
    print("progress", json.dumps({"stage": stage, "done": done, "total": total}), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
