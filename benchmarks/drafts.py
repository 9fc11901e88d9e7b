"""A draft model out of the model itself: the same GGUF file, or Hugging Face folder, without some of its layers.

There is one size of the packaged model. A model with layers cut out of its middle guesses worse than a trained smaller
one and is hardly faster: what it shows is that guesses are verified, not what a good draft gains."""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

from modelyard.models import safetensors
from modelyard.models.ggml_types import TENSOR_TYPES
from modelyard.models.gguf import DEFAULT_ALIGNMENT, Header, Tensor, read_header

_TYPE_NUMBERS = {kind: number for number, kind in TENSOR_TYPES.items()}
_FIXED_BYTES = 24  # magic, version, number of tensors, number of metadata entries
_LAYER = re.compile(r"(blk\.|model\.layers\.)(\d+)(\..*)")
# One layer in so many is cut out, in one piece behind the middle.
_ONE_IN = 10


def made(model: Path, folder: Path) -> Path:
    """The draft model of the file or folder `model`, written into `folder` unless it is there."""
    target = folder / model.name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if model.is_dir():
            layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
            folder_without_layers(model, target, _cut_out(layers))
        else:
            header = read_header(model)
            layers = int(str(header.metadata[f"{header.metadata['general.architecture']}.block_count"]))
            without_layers(model, target, _cut_out(layers))
    return target


def _cut_out(layers: int) -> range:
    return range(layers // 2, layers // 2 + max(1, layers // _ONE_IN))


def without_layers(source: Path, target: Path, dropped: range) -> None:
    """Writes `source` to `target` without the layers `dropped`, the later ones counted down.

    Raises ModelRefused where the source is no GGUF file, ValueError where it has no such layers."""
    header = read_header(source)
    kept = [
        (tensor, replace(tensor, name=name))
        for tensor in header.tensors
        if (name := _renamed(tensor.name, dropped)) is not None
    ]
    metadata = _metadata(source, header, dropped)
    alignment = int(str(header.metadata.get("general.alignment", DEFAULT_ALIGNMENT)))
    infos, end = b"", 0
    for _, tensor in kept:
        infos += _info(replace(tensor, offset=end))
        end += _padded(tensor.size_bytes, alignment)
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(kept), len(header.metadata)) + metadata + infos
    with source.open("rb") as old, target.open("wb") as new:
        new.write(head.ljust(_padded(len(head), alignment), b"\0"))
        for tensor, _ in kept:
            old.seek(tensor.offset)
            new.write(old.read(tensor.size_bytes).ljust(_padded(tensor.size_bytes, alignment), b"\0"))


def _renamed(name: str, dropped: range) -> str | None:
    """None where it belongs to a dropped layer."""
    if (match := _LAYER.fullmatch(name)) is None:
        return name
    layer = int(match[2])
    if layer in dropped:
        return None
    return f"{match[1]}{layer - len(dropped) * (layer >= dropped.stop)}{match[3]}"


def _metadata(source: Path, header: Header, dropped: range) -> bytes:
    """The entries as they stand in the file, but for the number of layers."""
    infos_bytes = sum(len(_info(tensor)) for tensor in header.tensors)
    with source.open("rb") as file:
        file.seek(_FIXED_BYTES)
        entries = bytearray(file.read(header.header_bytes - infos_bytes - _FIXED_BYTES))
    name = f"{header.metadata['general.architecture']}.block_count"
    layers = int(str(header.metadata[name]))
    _check(dropped, layers)
    key = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", 4)
    place = entries.index(key) + len(key)
    entries[place : place + 4] = struct.pack("<I", layers - len(dropped))
    return bytes(entries)


def _check(dropped: range, layers: int) -> None:
    if dropped.step != 1 or not 0 < dropped.start < dropped.stop < layers:
        raise ValueError(f"layers {dropped.start} to {dropped.stop - 1} are not in the middle of {layers}")


def _info(tensor: Tensor) -> bytes:
    name = tensor.name.encode()
    shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", _TYPE_NUMBERS[tensor.type], tensor.offset)


def _padded(size_bytes: int, alignment: int) -> int:
    return -(-size_bytes // alignment) * alignment


def folder_without_layers(source: Path, target: Path, dropped: range) -> None:
    """The same for a Hugging Face folder whose weights stand in one `model.safetensors`."""
    config = json.loads((source / "config.json").read_text())
    _check(dropped, config["num_hidden_layers"])
    config["num_hidden_layers"] -= len(dropped)
    if "layer_types" in config:
        del config["layer_types"][dropped.start : dropped.stop]
    target.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config, indent=1))
    _safetensors_without_layers(source / "model.safetensors", target / "model.safetensors", dropped)


def _safetensors_without_layers(source: Path, target: Path, dropped: range) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    kept: list[safetensors.Tensor] = []
    end = 0
    for tensor in safetensors.read_tensors(source):
        if (name := _renamed(tensor.name, dropped)) is not None:
            offsets = [end, end := end + tensor.size_bytes]
            header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
            kept.append(tensor)
    head = json.dumps(header).encode()
    head = head.ljust(_padded(len(head), 8))
    with source.open("rb") as old, target.open("wb") as new:
        new.write(struct.pack("<Q", len(head)) + head)
        for tensor in kept:
            old.seek(tensor.offset)
            new.write(old.read(tensor.size_bytes))
